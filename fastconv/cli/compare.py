"""``fastconv compare``: a model as it is against the same model swapped, in both layouts, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typer import Argument, Option

from fastconv.cli import UserError, arguments
from fastconv.cli.screen import console, milliseconds, percent, progress, step, times

TOP = 5  # labels shown for an image
IMAGENET_CLASSES = 1000
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def compare(
    model: Annotated[str, Argument(help="NAME, torchvision:NAME, timm:NAME or FILE.py:CALLABLE.")],
    batch: Annotated[int | None, Option(help="Images in the timed batch; 1, or as many as images are given.")] = None,
    size: Annotated[int | None, Option(help="Height and width of the images.")] = None,
    image: Annotated[list[Path] | None, Option(help="A picture to classify with both; may be repeated.")] = None,
    photographs: Annotated[bool, Option("--photographs", help="Classify scikit-image's photographs.")] = False,
    weights: Annotated[Path | None, Option(help="A state dict to load (.safetensors, or torch's format).")] = None,
    pretrained: Annotated[bool, Option("--pretrained", help="The weights an installed package carries.")] = False,
    channels_last: Annotated[bool | None, Option(help="Only this layout, or only NCHW; both when not said.")] = None,
    seconds: Annotated[float, Option(help="Seconds of timing for each of the ways to run it.")] = 2.0,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """Run a model as it is and swapped: the difference of the results, times, and what every layer took."""
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
    layouts = [name for name in FORMATS if channels_last is None or channels_last == (name == "channels_last")]
    _compare(source, told, x, layouts, seconds, names, pictures, json)


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
        raise UserError(f"A picture cannot be read: {error}") from None
    return [name for name, _ in named], torch.cat(loaded) if loaded else None


def _batch(pictures: Tensor | None, source: arguments.Source, batch: int | None, size: int | None) -> Tensor:
    """The timed input: the pictures, repeated to the batch size, or random values."""
    if pictures is None:
        return source.example(batch or 1, size)
    count = batch or len(pictures)
    return pictures.repeat(-(-count // len(pictures)), 1, 1, 1)[:count].contiguous()


@dataclass(frozen=True)
class Way:
    """One way to run the model."""

    swapped: bool
    layout: str
    model: nn.Module
    x: Tensor

    @property
    def name(self) -> str:
        return f"{'swapped' if self.swapped else 'stock'} {self.layout}"

    def __call__(self, x: Tensor | None = None) -> object:
        given = self.x if x is None else x.contiguous(memory_format=FORMATS[self.layout])
        with torch.no_grad():
            return self.model(given)


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules around the very same parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def _ways(stock: nn.Module, x: Tensor, layouts: list[str]) -> tuple[list[Way], object]:
    """Stock and swapped in every layout, and the report of the swap."""
    import fastconv

    ways, report = [], None
    for layout in layouts:
        model = copy.deepcopy(stock).to(memory_format=FORMATS[layout]) if layout != "NCHW" else stock
        given = x.contiguous(memory_format=FORMATS[layout])
        ours = _shared_copy(model)
        report = fastconv.swap(ours)
        ways += [Way(False, layout, model, given), Way(True, layout, ours, given)]
    return ways, report


def _compare(
    source: arguments.Source,
    told: str,
    x: Tensor,
    layouts: list[str],
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
        ways, report = _ways(source.model, x, layouts)
        step(bar, "comparing results")
        differences = _differences(ways)
        step(bar, "timing in turns")
        timings = timer.in_turns({way.name: way for way in ways}, seconds, lambda: step(bar))
        step(bar, "timing layers", 0)
        ceilings = roofline.ceilings()
        last = ways[-1]
        per_layer = layers.layer_times(last.model, last.x)
    screen.print(f"{len(report.swapped)} of {len(report.rows)} layers run on fastconv", highlight=False)
    for row in report.kept:
        screen.print(f"kept: {row.name or '(the model)'} ({row.kind}): {row.kept}", style="dim", highlight=False)
    _print_layers(screen, per_layer, ceilings, last.layout)
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
                "swapped": len(report.swapped),
                "kept": [{"layer": row.name, "kind": row.kind, "why": row.kept} for row in report.kept],
                "layers": [
                    asdict(row) | {"problem": str(row.problem), "limit": ceilings.limit(row.problem)}
                    for row in per_layer
                ],
                "images": labels,
            },
        )


def _differences(ways: list[Way]) -> dict[str, float]:
    """Largest difference from the first way's result, relative to that result's largest value."""

    def leaves(way: Way) -> list[Tensor]:
        try:
            result = way()
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"The model cannot run on that image: {error}") from None
        return [t.double() for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]

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


def _print_labels(screen, ways: list[Way], names: list[str], pictures: Tensor) -> list[dict[str, object]]:
    """The best labels of every picture by the stock and by the swapped model."""
    logits = [way(pictures) for way in (ways[0], ways[-1])]
    if not all(isinstance(t, Tensor) and t.dim() == 2 for t in logits):
        raise UserError("The model does not return one row of class scores for each image, so it names no labels.")
    stock, swapped = (t.softmax(1).topk(min(TOP, t.shape[1])) for t in logits)
    name = _namer(logits[0].shape[1])
    labels = []
    for i, picture in enumerate(names):
        table = Table("stock", "", "swapped", "", title=picture, title_justify="left")
        columns = []
        for best in (stock, swapped):
            values, indices = best.values[i].tolist(), best.indices[i].tolist()
            columns.append([(name(index), value) for index, value in zip(indices, values, strict=True)])
        for (a, p), (b, q) in zip(*columns, strict=True):
            table.add_row(a, percent(p), b, percent(q))
        screen.print(table)
        labels.append({"image": picture, "stock": columns[0], "swapped": columns[1]})
    return labels
