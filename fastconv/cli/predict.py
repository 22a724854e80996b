"""``fastconv predict``: what a trained network says about pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from fastconv.cli import UserError, arguments
from fastconv.cli.screen import console, percent


def predict(
    model: Annotated[str, Argument(help="One of 'fastconv models'.")],
    image: Annotated[list[Path], Argument(help="Pictures.")],
    checkpoint: Annotated[
        list[Path] | None, Option(help="Trained weights; several are an ensemble. Published ones when not said.")
    ] = None,
    top: Annotated[int, Option(help="Classes shown for each picture.")] = 5,
    ten_crops: Annotated[bool, Option("--ten-crops", help="Average over corners, middle and mirror images.")] = False,
    layers: Annotated[str, Option(help="Whose layers: fastconv or torch.")] = "fastconv",
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """Name the likeliest classes of pictures."""
    from fastconv.training import load_predictor

    arguments.positive(top, "--top")
    arguments.one_of(layers, ("fastconv", "torch"), "--layers")
    arguments.output_file(json)
    for path in image:
        arguments.input_file(path, "The picture")
    try:
        predictor = load_predictor(model, checkpoint or [], layers=layers)
        found = {str(path): predictor(path, top=top, ten=ten_crops) for path in image}
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    for path, prediction in found.items():
        table = Table("class", "", title=f"{path} ({model}, {predictor.told})", title_justify="left")
        for name, share in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(name, percent(share))
        console().print(table)
    if json:
        from fastconv.profiling import results

        images = [{"image": path, **asdict(prediction)} for path, prediction in found.items()]
        results.write(json, {"kind": "predict", "model": model, "weights": predictor.told, "images": images})
