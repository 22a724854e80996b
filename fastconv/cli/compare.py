"""``fastconv compare``: a model as it is, swapped, as a plan, and through other runtimes, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from rich.table import Table
from torch import Tensor, nn
from typer import Argument, Option

from fastconv.cli import UserError, arguments
from fastconv.cli.screen import console, milliseconds, percent, progress, step, times

TOP = 5  # labels shown for an image
IMAGENET_CLASSES = 1000


def compare(
    model: Annotated[str, Argument(help="NAME, torchvision:NAME, timm:NAME or FILE.py:CALLABLE.")],
    batch: Annotated[int | None, Option(help="Images in the timed batch; 1, or as many as images are given.")] = None,
    size: Annotated[int | None, Option(help="Height and width of the images.")] = None,
    image: Annotated[list[Path] | None, Option(help="A picture to classify with both; may be repeated.")] = None,
    photographs: Annotated[bool, Option("--photographs", help="Classify scikit-image's photographs.")] = False,
    weights: Annotated[Path | None, Option(help="A state dict to load (.safetensors, or torch's format).")] = None,
    pretrained: Annotated[bool, Option("--pretrained", help="The weights an installed package carries.")] = False,
    channels_last: Annotated[bool | None, Option(help="Only this layout, or only NCHW; both when not said.")] = None,
    optimize: Annotated[bool, Option("--optimize", help="Also as a plan (fastconv.optimize).")] = False,
    peers: Annotated[str, Option(help="Other runtimes, by commas: compile, onnxruntime, openvino.")] = "",
    seconds: Annotated[float, Option(help="Seconds of timing for each of the ways to run it.")] = 2.0,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """Run a model as it is and swapped: the difference of the results, times, and what every layer took."""
    from fastconv.testing import ways

    arguments.positive(batch, "--batch")
    arguments.positive(size, "--size")
    arguments.output_file(json)
    if not 0 < seconds < float("inf"):
        raise UserError(f"--seconds must be a positive number, but is {seconds}.")
    if weights and pretrained:
        raise UserError("--weights and --pretrained are two sources of weights: give one.")
    for path in image or []:
        arguments.input_file(path, "--image")
    source = arguments.source(model)
    stock = source.model.eval()
    told = _load(stock, source, weights, pretrained)
    names, pictures = _pictures(image or [], photographs, size or source.image_size, source)
    x = _batch(pictures, source, batch, size)
    unknown = [name for name in peers.split(",") if name and name not in ways.PEERS]
    if unknown:
        raise UserError(f"--peers: there is no runtime {unknown[0]!r}; there are {', '.join(ways.PEERS)}.")
    layouts = [name for name in ways.FORMATS if channels_last is None or channels_last == (name == "channels_last")]
    others = [*(["plan"] if optimize else []), *filter(None, peers.split(","))]
    _compare(source, told, x, layouts, others, seconds, names, pictures, json)


def _load(model: nn.Module, source: arguments.Source, weights: Path | None, pretrained: bool) -> str:
    """Loads weights and says which."""
    from fastconv.models import load_weights, pretrained_path

    if pretrained:
        try:
            weights = pretrained_path(source.name)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error)) from None
    if weights is None:
        return "random weights"
    arguments.input_file(weights, "--weights")
    try:
        load_weights(model, weights)
    except Exception as error:  # torch's and safetensors' readers raise whatever a damaged file leads to
        raise UserError(f"--weights {weights}: {error}") from None
    return f"weights from {weights.name}"


def _pictures(
    paths: list[Path], photographs: bool, size: int, source: arguments.Source
) -> tuple[list[str], Tensor | None]:
    """Names and the batch [N, 3, size, size] of the pictures asked for, or none."""
    from fastconv.models import images, model_info, sample_photographs

    normalization = model_info(source.name).normalization if source.own else images.IMAGENET
    try:
        named = [(path.name, path) for path in paths] + (sample_photographs() if photographs else [])
        loaded = [images.load_image(picture, size, normalization) for _, picture in named]
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from None
    return [name for name, _ in named], torch.cat(loaded) if loaded else None


def _batch(pictures: Tensor | None, source: arguments.Source, batch: int | None, size: int | None) -> Tensor:
    """The timed input: the pictures, repeated to the batch size, or random values."""
    if pictures is None:
        return source.example(batch or 1, size)
    count = batch or len(pictures)
    return pictures.repeat(-(-count // len(pictures)), 1, 1, 1)[:count].contiguous()


def _ways(source: arguments.Source, x: Tensor, layouts: list[str], others: list[str]) -> tuple[list, object, list[str]]:
    """Stock and swapped in every layout, then the others; the report of the swap; and why others are missing."""
    from fastconv.testing import ways

    found, missing, report = [], [], None
    for layout in layouts:
        stock, swapped, report = ways.eager(source.model, x, layout)
        found += [stock, swapped]
    for name in others:
        try:
            found.append(ways.plan(source.model, x) if name == "plan" else ways.peer(name, source.model, x))
        except (ways.Missing, RuntimeError) as error:
            missing.append(f"{name}: {error}")
    return found, report, missing


def _compare(
    source: arguments.Source,
    told: str,
    x: Tensor,
    layouts: list[str],
    others: list[str],
    seconds: float,
    names: list[str],
    pictures: Tensor | None,
    json: Path | None,
) -> None:
    from fastconv.profiling import layers, results, roofline, timer
    from fastconv.profiling.machine import this_machine

    screen = console()
    facts = this_machine()
    screen.print(f"{facts.cpu}, {facts.threads} threads, {facts.isa}, torch {facts.torch}", highlight=False)
    screen.print(f"{source.name}, {told}, input {tuple(x.shape)}", highlight=False)
    with progress("swapping", 3 + timer.TURNS) as bar:
        ways, report, missing = _ways(source, x, layouts, others)
        step(bar, "comparing results")
        differences = _differences(ways)
        step(bar, "timing in turns")
        timings = timer.in_turns(
            {way.name: way.run for way in ways}, seconds, lambda: step(bar), timer.POOL_REST if others else 0.0
        )
        step(bar, "timing layers", 0)
        ceilings = roofline.ceilings()
        last = next(way for way in reversed(ways) if way.name.startswith("swapped"))
        per_layer = layers.layer_times(last.call, last.x)
    screen.print(f"{len(report.swapped)} of {len(report.rows)} layers run on fastconv", highlight=False)
    for row in report.kept:
        screen.print(f"kept: {row.name or '(the model)'} ({row.kind}): {row.kept}", style="dim", highlight=False)
    for sentence in missing:
        screen.print(sentence, style="dim", highlight=False)
    _print_layers(screen, per_layer, ceilings, layouts[-1])
    _print_times(screen, timings, differences)
    labels = _print_labels(screen, ways, names, pictures) if pictures is not None else []
    if json:
        results.write(
            json,
            {
                "kind": "compare",
                "machine": facts.as_dict(),
                "ceilings": ceilings.as_dict(),
                "model": source.name,
                "weights": told,
                "input": list(x.shape),
                "times": {name: asdict(timing) for name, timing in timings.items()},
                "differences": differences,
                "missing": missing,
                "swapped": len(report.swapped),
                "kept": [{"layer": row.name, "kind": row.kind, "why": row.kept} for row in report.kept],
                "layers": [
                    asdict(row) | {"problem": str(row.problem), "limit": ceilings.limit(row.problem)}
                    for row in per_layer
                ],
                "images": labels,
            },
        )


def _differences(ways: list) -> dict[str, float]:
    """Largest difference from the first way's result, relative to that result's largest value."""

    def leaves(way) -> list[Tensor]:
        try:
            return way.tensors()
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"The model cannot run on that image: {error}") from None

    first = leaves(ways[0])
    scale = max((float(t.abs().max()) for t in first if t.numel()), default=0.0) or 1.0
    return {
        way.name: max((float((a - b).abs().max()) for a, b in zip(leaves(way), first, strict=True)), default=0.0)
        / scale
        for way in ways
    }


def _print_layers(screen, rows: list, ceilings, layout: str) -> None:
    table = Table("layer", "problem", "kernel", "ms", "of limit", title=f"swapped, {layout}", title_justify="left")
    for row in rows:
        share = percent(ceilings.limit(row.problem) / row.seconds)
        table.add_row(row.layer or "(the model)", str(row.problem), row.kernel, milliseconds(row.seconds), share)
    screen.print(table)


def _print_times(screen, timings: dict, differences: dict[str, float]) -> None:
    stock = min(t.median for name, t in timings.items() if name.startswith("stock"))
    table = Table("", "ms", "p10 - p90", "vs the better stock", "largest difference")
    for name, t in timings.items():
        spread = f"{milliseconds(t.p10)} - {milliseconds(t.p90)}"
        table.add_row(name, milliseconds(t.median), spread, times(stock / t.median), f"{differences[name]:.2g}")
    screen.print(table)
    first = next(iter(differences))
    screen.print(f"differences: from {first}, relative to its largest value", highlight=False)


def _namer(classes: int) -> Callable[[int], str]:
    from fastconv.models import imagenet_labels

    return imagenet_labels().__getitem__ if classes == IMAGENET_CLASSES else "class {}".format


def _print_labels(screen, ways: list, names: list[str], pictures: Tensor) -> list[dict[str, object]]:
    """The best labels of every picture by the stock model, the swapped one and, where there is one, the plan."""
    shown = {way.name.split()[0]: way for way in ways if way.name == ways[0].name or way.ours}
    logits = [way.run(pictures) for way in shown.values()]
    if not all(isinstance(t, Tensor) and t.dim() == 2 for t in logits):
        raise UserError("The model does not return one row of class scores for each image, so it names no labels.")
    best = [t.softmax(1).topk(min(TOP, t.shape[1])) for t in logits]
    name = _namer(logits[0].shape[1])
    labels = []
    for i, picture in enumerate(names):
        table = Table(*(word for way in shown for word in (way, "")), title=picture, title_justify="left")
        columns = [
            [(name(int(index)), float(value)) for index, value in zip(b.indices[i], b.values[i], strict=True)]
            for b in best
        ]
        for row in zip(*columns, strict=True):
            table.add_row(*(word for label, share in row for word in (label, percent(share))))
        screen.print(table)
        labels.append({"image": picture, **dict(zip(shown, columns, strict=True))})
    return labels
