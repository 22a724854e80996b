"""``fastconv models --compare``: every network beside the others, as a table, a picture and, when asked, a clock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from fastconv.cli.screen import milliseconds, progress, step, times

if TYPE_CHECKING:
    from fastconv.models.comparison import Standing

_WIDTH, _ROW, _MARGIN = 4, 0.22, 1.2  # inches: of a column, of a network, around


@dataclass(frozen=True)
class Clocked:
    """Median seconds for one image in eval mode: torch's layers in their better layout, ours in channels_last;
    `difference` is the largest one between their results, relative to the largest value (None: regions)."""

    torch: float
    fastconv: float
    difference: float | None


def clock(standings: Sequence[Standing], seconds: float) -> dict[str, Clocked]:
    """Every network with the same random weights in turns, about `seconds` for each way."""
    clocked = {}
    with progress("timing", len(standings)) as bar:
        for standing in standings:
            step(bar, standing.name, advance=0)
            clocked[standing.name] = _clock(standing.name, seconds)
            step(bar)
    return clocked


def _clock(name: str, seconds: float) -> Clocked:
    import torch

    from fastconv.models import create_model, model_info
    from fastconv.profiling.timer import in_turns

    info = model_info(name)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, info.channels, info.image_size, info.image_size, generator=generator)
    ways, results = {}, {}
    with torch.no_grad():
        weights = create_model(name, layers="torch").state_dict()
        for way, layers, layout in (
            ("torch", "torch", torch.contiguous_format),
            ("torch channels_last", "torch", torch.channels_last),
            ("fastconv", "fastconv", torch.channels_last),
        ):
            model = create_model(name, layers=layers).eval()
            model.load_state_dict(weights)
            model, x = model.to(memory_format=layout), image.to(memory_format=layout)
            result = model(x)
            results[way] = result["out"] if isinstance(result, dict) else result
            ways[way] = lambda model=model, x=x: model(x)
        timings = in_turns(ways, seconds)
    expected, ours = results["torch"], results["fastconv"]
    # A detector that searches may keep other regions for a last digit: nothing to compare.
    same = isinstance(ours, torch.Tensor)
    difference = float((ours - expected).abs().max() / expected.abs().max()) if same else None
    stock = min(timing.median for way, timing in timings.items() if way != "fastconv")
    return Clocked(stock, timings["fastconv"].median, difference)


def table(standings: Sequence[Standing], clocked: dict[str, Clocked]) -> Table:
    """One line a network; times only where there are some."""
    shown = Table("model", caption="Depth: weighted layers on the longest way. FLOPs: of one image, two a product.")
    for title in ("image", "parameters", "FLOPs", "depth"):
        shown.add_column(title, justify="right")
    if clocked:
        for title in ("torch, ms", "fastconv, ms", "", "difference"):
            shown.add_column(title, justify="right")
    for one in standings:
        cells = [f"{one.image_size}", _count(one.parameters), _count(one.flops), f"{one.depth}"]
        if one.name in clocked:
            own = clocked[one.name]
            cells += [milliseconds(own.torch), milliseconds(own.fastconv), times(own.torch / own.fastconv)]
            cells.append("" if own.difference is None else f"{own.difference:.1g}")
        shown.add_row(one.name, *cells)
    return shown


def _count(number: int) -> str:
    """ "3.63 G", "651 k": three digits."""
    unit, scale = next(((u, s) for u, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if number >= s), ("", 1))
    return f"{number / scale:.3g} {unit}"


def save_plot(standings: Sequence[Standing], clocked: dict[str, Clocked], path: str | os.PathLike) -> None:
    """A row for each network, a column for parameters, FLOPs, depth and, where there are some, times."""
    from fastconv.training.curves import pyplot, save_figure

    columns: list[tuple[str, dict[str, list[float]]]] = [
        ("parameters", {"": [one.parameters for one in standings]}),
        ("FLOPs of an image", {"": [one.flops for one in standings]}),
        ("weighted layers", {"": [one.depth for one in standings]}),
    ]
    if clocked:
        own = [clocked[one.name] for one in standings]
        both = {"torch": [c.torch * 1e3 for c in own], "fastconv": [c.fastconv * 1e3 for c in own]}
        columns.append(("milliseconds an image", both))
    plt = pyplot()
    size = (_WIDTH * len(columns), _ROW * len(standings) + _MARGIN)
    figure, all_axes = plt.subplots(1, len(columns), sharey=True, figsize=size, layout="constrained")
    for axes, (title, series) in zip(all_axes, columns, strict=True):
        for label, values in series.items():
            axes.plot(values, range(len(values)), "o", label=label)
        axes.set_title(title)
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend()
    all_axes[0].set_ylim(-1, len(standings))
    all_axes[0].set_yticks(range(len(standings)), [one.name for one in standings])
    save_figure(figure, path)
