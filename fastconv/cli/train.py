"""``fastconv train``: a network learns a data set by its paper's recipe; interrupted runs go on where they were."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from typer import Argument, Option

from fastconv.cli import UserError, arguments
from fastconv.cli.screen import console, progress

if TYPE_CHECKING:
    from fastconv.training import Epoch, Recipe, Team, Trainer

PRECISIONS = ("float32", "bfloat16")
RUN, BEST, CURVES, FIGURES = "run.safetensors", "best.safetensors", "curves.png", "history.json"
_REFRESH = 0.1  # seconds between updates of the bar


def train(
    model: Annotated[str, Argument(help="One of 'fastconv models'.")],
    data: Annotated[
        str, Option(help="digits, shapes, or a folder: of a folder for each class, or for a detector COCO's.")
    ],
    out: Annotated[Path | None, Option(help="Folder of the run's files; runs/MODEL-DATA when not said.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on with the run in that folder.")] = False,
    epochs: Annotated[int | None, Option(help="Passes over the data, instead of the recipe's.")] = None,
    batch: Annotated[int | None, Option(help="Pictures a step, over all processes, instead of the recipe's.")] = None,
    rate: Annotated[float | None, Option(help="Initial learning rate, instead of the recipe's.")] = None,
    size: Annotated[int | None, Option(help="Pixels a side, instead of the network's own.")] = None,
    seed: Annotated[int, Option(help="Decides weights, order, augmentation and dropout.")] = 0,
    precision: Annotated[str, Option(help="float32, or bfloat16: autocast.")] = "float32",
    layers: Annotated[str, Option(help="Whose layers: fastconv or torch.")] = "fastconv",
    every: Annotated[int, Option(help="Also keep the run every so many steps, not only after epochs.")] = 0,
    plan: Annotated[bool, Option("--plan", help="Print the recipe and leave.")] = False,
) -> None:
    """Train a network by its paper's recipe. Under torchrun, by as many processes as it starts."""
    from fastconv.models import model_info
    from fastconv.training import DetectorTrainer, Job, Trainer, recipe_for, team

    arguments.positive(epochs, "--epochs")
    arguments.positive(batch, "--batch")
    arguments.positive(size, "--size")
    arguments.one_of(precision, PRECISIONS, "--precision")
    arguments.one_of(layers, ("fastconv", "torch"), "--layers")
    if every < 0:
        raise UserError(f"--every must be at least 0, but is {every}.")
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"--rate must be a positive number, but is {rate}.")
    try:
        kind = DetectorTrainer if model_info(model).boxes else Trainer
        recipe = recipe_for(model)
        changes = {"epochs": epochs, "batch": batch, "rate": rate}
        recipe = dataclasses.replace(recipe, **{key: value for key, value in changes.items() if value is not None})
        if plan:
            console().print(_recipe(model, recipe))
            return
        with team() as present:
            job = Job(model, data, recipe, size, seed, precision, layers)
            trainer = kind(job, team=present)
            folder = _folder(out or Path("runs") / f"{model}-{Path(data).name}", resume, present)
            if resume:
                trainer.load(folder / RUN)
            _run(trainer, folder, every)
    except (ValueError, FileNotFoundError, ArithmeticError, RuntimeError) as error:
        raise UserError(str(error)) from error


def _folder(folder: Path, resume: bool, team: Team) -> Path:
    """The run's folder; a run that is there already is neither lost nor gone on with unasked."""
    if not resume and (folder / RUN).exists():
        raise UserError(f"There is a run in {folder}: --resume goes on with it, --out names another folder.")
    if resume and not (folder / RUN).is_file():
        raise UserError(f"There is no run in {folder} to go on with.")
    team.wait()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made: {error.strerror}.") from error
    return folder


def _run(trainer: Trainer, folder: Path, every: int) -> None:
    from fastconv.training.curves import pyplot, save_curves

    screen, first = console(), trainer.team.first
    if first:
        pyplot()  # a missing package is told before the work, not after it
        screen.print(_recipe(trainer.job.model, trainer.job.recipe))
        screen.print(_told(trainer), highlight=False)
    best = max((epoch.held_accuracy for epoch in trainer.history), default=-1.0)
    started, shown = time.monotonic(), 0.0

    with _interrupts() as interrupted, progress("training", trainer.steps) as bar:
        bar.disable = bar.disable or not first

        def on_step(trainer: Trainer, loss: float) -> None:
            nonlocal shown
            if every and trainer.step % every == 0:
                trainer.save(folder / RUN)
            if time.monotonic() - shown >= _REFRESH:
                shown = time.monotonic()
                text = f"epoch {len(trainer.history) + 1}, loss {loss:.4f}, rate {trainer.rate:.3g}"
                bar.update(bar.task_ids[0], completed=trainer.step, description=text)

        def on_epoch(trainer: Trainer, epoch: Epoch) -> None:
            nonlocal best
            if epoch.held_accuracy > best:
                best = epoch.held_accuracy
                trainer.save_weights(folder / BEST)
            trainer.save(folder / RUN)
            if first:
                screen.print(_line(trainer.measures, epoch, time.monotonic() - started), highlight=False)
                _write(trainer, folder)
                save_curves(trainer.history, folder / CURVES, f"{trainer.job.model} on {trainer.data.name}")

        finished = trainer.run(stop=lambda: bool(interrupted), on_step=on_step, on_epoch=on_epoch)
    if not finished:
        trainer.save(folder / RUN)
        if first:
            screen.print(f"Stopped after step {trainer.step} of {trainer.steps}; --resume goes on from {folder / RUN}.")
        raise KeyboardInterrupt
    if first and trainer.history:
        last = trainer.history[-1]
        screen.print(
            f"{trainer.job.model} on {trainer.data.name}: held-out {trainer.measures[1]} {last.held_accuracy:.2%} at "
            f"the end, {best:.2%} at best ({folder / BEST}); {time.monotonic() - started:.0f} s",
            highlight=False,
        )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step at hand is finished and kept; a second one ends at once."""
    got: list[int] = []

    def take(number: int, frame: object) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)

    old = {number: signal.signal(number, take) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _told(trainer: Trainer) -> str:
    data, share = trainer.data, trainer.team
    return (
        f"{len(data.train)} pictures of {len(data.classes)} classes to learn, {len(data.held)} held out; "
        f"{trainer.size} x {trainer.size} pixels; {trainer.batches.batch} a step, {trainer.batches.steps} steps an "
        f"epoch; {share.world} process{'es' if share.world > 1 else ''}; {trainer.job.precision}"
        + (f"; goes on after step {trainer.step}" if trainer.step else "")
    )


def _recipe(name: str, recipe: Recipe) -> Table:
    table = Table(show_header=False, box=None, title=f"{name}: {recipe.source}", title_justify="left")
    momentum = f", momentum {recipe.momentum:g}" if recipe.optimizer != "adam" else ""
    rows = {
        "batch, epochs": f"{recipe.batch}, {recipe.epochs}",
        "optimiser": f"{recipe.optimizer}{momentum}{' (Nesterov)' if recipe.nesterov else ''}, decay {recipe.decay:g}",
        "learning rate": f"{recipe.rate:g}, {recipe.schedule}"
        + (f", rising for {recipe.warmup:g} epochs" if recipe.warmup else ""),
        "dropout": "the network's own" if recipe.dropout is None else f"{recipe.dropout:g}",
        "augmentation": ", ".join(map(str, recipe.augmentation)) or "none",
        "averaged weights": f"{recipe.average:g} a step" if recipe.average is not None else "",
        "label smoothing": f"{recipe.smoothing:g}" if recipe.smoothing else "",
        "unlike the paper": recipe.unlike,
    }
    for key, value in rows.items():
        if value:
            table.add_row(key, value)
    return table


def _line(measures: tuple[str, str], epoch: Epoch, seconds: float) -> str:
    return (
        f"epoch {epoch.epoch:3}: loss {epoch.loss:.4f}, {measures[0]} {epoch.accuracy:.2%}; held out: loss "
        f"{epoch.held_loss:.4f}, {measures[1]} {epoch.held_accuracy:.2%}; rate {epoch.rate:.3g}; {seconds:.0f} s"
    )


def _write(trainer: Trainer, folder: Path) -> None:
    from fastconv.profiling import results

    history = [asdict(epoch) for epoch in trainer.history]
    results.write(folder / FIGURES, {"kind": "train", **trainer.job.facts(), "epochs": history}, lines="epochs")
