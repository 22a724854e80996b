"""``fastconv study``: what the field's papers showed, as experiments of one command each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from typer import Argument, Option

from fastconv.cli import UserError, arguments
from fastconv.cli.screen import console, progress, step

study = typer.Typer(help="Experiments of the papers, one command each.", no_args_is_help=True)


@study.command("degradation")
def degradation(
    depth: Annotated[list[int] | None, Option(help="Layers, 6n + 2; several may be given. 20 and 56 if none.")] = None,
    data: Annotated[
        str, Option(help="digits, shapes, or a folder with a folder of pictures for each class.")
    ] = "digits",
    epochs: Annotated[int, Option(help="Passes over the data.")] = 6,
    batch: Annotated[int, Option(help="Pictures a step.")] = 32,
    rate: Annotated[float | None, Option(help="Learning rate; the paper's, in proportion to the batch.")] = None,
    size: Annotated[int, Option(help="Pixels a side.")] = 16,
    seed: Annotated[int, Option(help="Decides weights and order.")] = 0,
    layers: Annotated[str, Option(help="Whose layers: fastconv or torch.")] = "fastconv",
    plot: Annotated[Path | None, Option(help="Draw losses and gradient norms into this file.")] = None,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """Plain against residual networks: training loss by step, gradient norms by depth (He et al. 2015)."""
    from fastconv.training.degradation import KINDS, save_degradation
    from fastconv.training.degradation import degradation as courses_of

    for value, option in ((epochs, "--epochs"), (batch, "--batch"), (size, "--size")):
        arguments.positive(value, option)
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"--rate must be a positive number, but is {rate}.")
    arguments.one_of(layers, ("fastconv", "torch"), "--layers")
    arguments.output_file(json)
    arguments.plot_file(plot)
    depths = depth or [20, 56]
    options = {"epochs": epochs, "batch": batch, "rate": rate, "size": size, "seed": seed, "layers": layers}
    table = Table("network", "training loss, last epoch", "first layer's gradient: start", "end")
    courses = []
    try:
        with progress("training", len(KINDS) * len(depths) * epochs) as bar:

            def on_step(model: str, loss: float) -> None:
                bar.update(bar.task_ids[0], description=f"{model}, loss {loss:.3f}")

            for course in courses_of(depths, data, **options, on_step=on_step):
                courses.append(course)
                step(bar, advance=epochs)
    except (ValueError, FileNotFoundError, ArithmeticError, RuntimeError) as error:
        raise UserError(str(error)) from error
    for course in courses:
        norms = (course.gradients_at_start[0], course.gradients_at_end[0])
        table.add_row(course.model, f"{course.last_loss:.4f}", *(f"{norm:.3g}" for norm in norms))
    console().print(table)
    title = f"{data}, {size} x {size} pixels, {len(courses[0].losses)} steps of {batch} pictures"
    console().print(title, highlight=False)
    if plot:
        save_degradation(courses, plot, title)
    if json:
        from fastconv.profiling import results

        content = {"kind": "degradation", "data": data, **options, "networks": [asdict(c) for c in courses]}
        results.write(json, content, lines="networks")


@study.command("feature")
def feature(
    model: Annotated[str, Argument(help="A chain of layers among 'fastconv models': zfnet, alexnet, vgg16 ...")],
    image: Annotated[Path, Argument(help="A picture.")],
    layer: Annotated[str, Option(help="One of 'fastconv models MODEL', with feature maps.")],
    out: Annotated[Path, Option(help="The picture to write.")],
    channel: Annotated[
        int | None, Option(help="The feature map; the one with the strongest activation if none.")
    ] = None,
    checkpoint: Annotated[Path | None, Option(help="Trained weights; published ones when not said.")] = None,
) -> None:
    """Project a feature's strongest activation back to the pixels it answers to (Zeiler, Fergus 2013)."""
    from fastconv.models.visualize import project, save_projection
    from fastconv.training import load_predictor

    arguments.input_file(image, "The picture")
    arguments.output_file(out, "--out")
    try:
        predictor = load_predictor(model, [checkpoint] if checkpoint else [])
        found = project(predictor.networks[0], predictor.view(image, False), layer, channel)
        save_projection(found, out)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(str(error)) from error
    row, column = found.place
    console().print(
        f"{out}: map {found.channel} of {layer} is {found.value:.4g} at row {row}, column {column} "
        f"({model}, {predictor.told})",
        highlight=False,
    )
