"""``fastconv models``: the networks that come with the package, and the layers of one."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from fastconv.cli import UserError, arguments
from fastconv.cli.screen import console

if TYPE_CHECKING:
    from fastconv.models.layer_table import LayerRow, LayerTable, View
    from fastconv.models.registry import ModelInfo
    from fastconv.models.savings import Saving

_SECONDS = 1.0  # of timing for each way of running a network


def models(
    name: Annotated[
        list[str] | None, Argument(help="A network, to see its layers; with --compare any number, or all.")
    ] = None,
    compare: Annotated[bool, Option("--compare", help="Networks side by side: parameters, FLOPs, depth.")] = False,
    time: Annotated[
        bool, Option("--time", help="With --compare: also measure one image, torch's layers and ours.")
    ] = False,
    plot: Annotated[Path | None, Option(help="With --compare: draw it into this file.")] = None,
    size: Annotated[int | None, Option(help="Pixels a side of the image, instead of the network's own.")] = None,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """List the networks, compare them, or one network's layers: sizes by formula, parameters, FLOPs, fields."""
    from fastconv.models import list_models, model_info

    arguments.output_file(json)
    if size is not None and (compare or not name):
        raise UserError("--size belongs to the layers of one network: give its name.")
    if compare:
        content = _compared(name or [], time, arguments.plot_file(plot))
    elif time or plot:
        raise UserError(f"{'--time' if time else '--plot'} belongs to --compare.")
    elif not name:
        infos = [model_info(name) for name in list_models()]
        console().print(_list(infos))
        content = {"kind": "models", "models": [_facts(info) for info in infos]}
    elif len(name) > 1:
        raise UserError(f"The layers of one network are shown at a time; --compare sets {' and '.join(name)} together.")
    else:
        info, layers, saved, side = _layers(name[0], size)
        console().print(_table(info, layers, side))
        for saving in saved:
            console().print(_saving(saving), highlight=False)
        rows = [_figures(row) for row in layers.rows]
        content = {"kind": "layers", **_facts(info), "size": side, "totals": _totals(layers)}
        content |= {"savings": [asdict(saving) for saving in saved], "layers": rows}
    if json:
        from fastconv.profiling import results

        results.write(json, content, lines="layers" if content["kind"] == "layers" else "models")


def _compared(names: list[str], time: bool, plot: Path | None) -> dict[str, Any]:
    from fastconv.cli import models_compared
    from fastconv.models.comparison import compare_models
    from fastconv.profiling.machine import this_machine

    try:
        standings = compare_models(names)
    except ValueError as error:
        raise UserError(str(error)) from error
    clocked = models_compared.clock(standings, _SECONDS) if time else {}
    console().print(models_compared.table(standings, clocked))
    if plot:
        models_compared.save_plot(standings, clocked, plot)
    times = {name: {"time": asdict(own)} for name, own in clocked.items()}
    content = {"kind": "models compared", "models": [asdict(one) | times.get(one.name, {}) for one in standings]}
    return content | ({"machine": this_machine().as_dict()} if time else {})


def _layers(name: str, size: int | None) -> tuple[ModelInfo, LayerTable, list[Saving], int]:
    """The layer table of a network built without storage, and what its convolutions save."""
    import torch

    from fastconv.models import create_model, layer_table, model_info
    from fastconv.models.savings import savings

    if size is not None and size < 1:
        raise UserError(f"--size must be at least 1, but is {size}.")
    try:
        info = model_info(name)
        side = info.image_size if size is None else size
        with torch.device("meta"):
            model, image = create_model(name), torch.empty(1, info.channels, side, side)
            return info, layer_table(model, image), savings(model, image), side
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error


def _list(infos: list[ModelInfo]) -> Table:
    table = Table("model", "image", "parameters", "multiply-adds")
    for info in infos:
        table.add_row(
            info.name,
            f"{info.channels} x {info.image_size} x {info.image_size}",
            f"{info.parameters / 1e6:.2f} M",
            f"{info.multiply_adds / 1e9:.2f} G",
        )
    return table


def _table(info: ModelInfo, layers: LayerTable, side: int) -> Table:
    totals = _totals(layers)
    idle = f", and {layers.idle_parameters:,} in layers that run in training only" if layers.idle_parameters else ""
    table = Table(
        *("layer", "kind", "output"),
        title=f"{info.name}, one image of {info.channels} x {side} x {side}",
        caption=f"{totals['parameters']:,} parameters{idle}; {totals['multiply_adds']:,} multiply-adds, "
        f"{totals['flops']:,} FLOPs. Field: pixels that can change a value; jump: pixels between neighbours.",
    )
    for title in ("height by formula", "parameters", "FLOPs", "field", "jump"):
        table.add_column(title, justify="left" if title.startswith("height") else "right")
    for row in layers.rows:
        table.add_row(
            row.name,
            row.kind,
            " x ".join(map(str, row.output_shape[1:])),
            row.formula,
            f"{row.parameters:,}" if row.parameters else "",
            f"{2 * row.multiply_adds:,}" if row.multiply_adds else "",
            _by_axis([_field(view) for view in row.views]),
            _by_axis([_jump(view) for view in row.views]),
        )
    return table


def _saving(saving: Saving) -> str:
    return (
        f"{saving.idea}, {saving.places} times: {saving.multiply_adds / 1e9:.3g} G multiply-adds and "
        f"{saving.weights / 1e6:.3g} M weights, where dense convolutions in their place would take "
        f"{saving.dense_multiply_adds / 1e9:.3g} G and {saving.dense_weights / 1e6:.3g} M."
    )


def _by_axis(texts: list[str]) -> str:
    """One text where both axes agree, else "vertical x horizontal"."""
    return texts[0] if texts[0] == texts[1] else " x ".join(texts)


def _field(view: View) -> str:
    if math.isnan(view.field):
        return "?"
    return "all" if math.isinf(view.field) else str(view.field)


def _jump(view: View) -> str:
    return str(view.jump) if math.isfinite(view.field) else ""


def _facts(info: ModelInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "image_size": info.image_size,
        "channels": info.channels,
        "classes": info.classes,
        "parameters": info.parameters,
        "multiply_adds": info.multiply_adds,
    }


def _totals(layers: LayerTable) -> dict[str, int]:
    return {
        "parameters": layers.parameters,
        "idle_parameters": layers.idle_parameters,
        "multiply_adds": layers.multiply_adds,
        "flops": 2 * layers.multiply_adds,
    }


def _figures(row: LayerRow) -> dict[str, Any]:
    """Fields are null where a value sees the whole image or it is not known; jumps are pixels."""
    finite = [math.isfinite(view.field) for view in row.views]
    return {
        "name": row.name,
        "kind": row.kind,
        "input": row.input_shape,
        "output": row.output_shape,
        "formula": row.formula,
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
        "flops": 2 * row.multiply_adds,
        "sees_all": [math.isinf(view.field) for view in row.views],
        "field": [float(view.field) if known else None for view, known in zip(row.views, finite, strict=True)],
        "jump": [float(view.jump) if known else None for view, known in zip(row.views, finite, strict=True)],
    }
