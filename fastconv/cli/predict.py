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
        list[Path] | None,
        Option(help="Weights of training, or published ones; several are an ensemble. A package's when not said."),
    ] = None,
    top: Annotated[int, Option(help="Classes shown for each picture.")] = 5,
    ten_crops: Annotated[bool, Option("--ten-crops", help="Average over corners, middle and mirror images.")] = False,
    layers: Annotated[str, Option(help="Whose layers: fastconv or torch.")] = "fastconv",
    score: Annotated[float, Option(help="How sure a detection must be to be told, 0 to 1.")] = 0.5,
    out: Annotated[
        Path | None, Option(help="Folder for a detector's pictures with boxes; beside each picture if none.")
    ] = None,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """Name the likeliest classes of pictures, or, with a detector, what stands where in them."""
    from fastconv.models import list_models, model_info
    from fastconv.training import load_predictor

    arguments.positive(top, "--top")
    arguments.one_of(layers, ("fastconv", "torch"), "--layers")
    arguments.output_file(json)
    if not 0 <= score <= 1:
        raise UserError(f"--score must be 0 to 1, but is {score}.")
    for path in image:
        arguments.input_file(path, "The picture")
    boxes = model in list_models() and model_info(model).boxes
    if out is not None and not boxes:
        raise UserError("--out is for the pictures a detector draws in; this model names whole pictures.")
    if boxes:
        if ten_crops:
            raise UserError("--ten-crops averages over classes; a detector has boxes.")
        if len(checkpoint or []) != 1:
            raise UserError(f"A detector takes one --checkpoint, and there are {len(checkpoint or [])}.")
        _detect(model, image, checkpoint[0], layers, score, out, json)
        return
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


def _detect(
    model: str, images: list[Path], checkpoint: Path, layers: str, score: float, out: Path | None, json: Path | None
) -> None:
    from fastconv.models.images import read_pixels
    from fastconv.training import load_detector
    from fastconv.training.drawing import save_detections

    try:
        detector = load_detector(model, checkpoint, layers=layers)
        found = {str(path): detector(path, score=score) for path in images}
        drawn = [(path, _place(path, out)) for path in images]
        for path, place in drawn:
            save_detections(read_pixels(path), found[str(path)], detector.classes, place)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    rows = {
        path: [
            {"class": detector.classes[label], "score": score, "box": [round(side, 1) for side in box]}
            for box, score, label in zip(*(part.tolist() for part in things), strict=True)
        ]
        for path, things in found.items()
    }
    for path, things in rows.items():
        title = f"{path} ({model}, {detector.told})"
        table = Table("class", "", "left, top, right, bottom", title=title, title_justify="left")
        for thing in things:
            table.add_row(thing["class"], percent(thing["score"]), ", ".join(map(str, thing["box"])))
        console().print(table)
    for _, place in drawn:
        console().print(f"Drawn in {place}.", highlight=False, soft_wrap=True)
    if json:
        from fastconv.profiling import results

        content = [{"image": path, "found": things} for path, things in rows.items()]
        results.write(json, {"kind": "detect", "model": model, "weights": detector.told, "images": content})


def _place(picture: Path, folder: Path | None) -> Path:
    """Where a picture's boxes are drawn: a new file, never the picture itself."""
    folder = picture.parent if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{picture.stem}.found.png"
