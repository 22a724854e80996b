"""``fastconv tune``: the search for the Triton kernels' best tiles on this GPU, kept in a file for later processes."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from typer import Argument, Option

from fastconv.cli import FAILED, UserError, arguments
from fastconv.cli.bench import forward
from fastconv.cli.screen import console, milliseconds, progress, step, times

NO_GPU = "Tuning times kernels on a GPU, and PyTorch finds none on this machine."


def tune(
    what: Annotated[list[str] | None, Argument(help="Problems, or models as 'fastconv bench --capture' takes.")] = None,
    suite: Annotated[str | None, Option("--suite", help="A corpus by name, or a file of problems.")] = None,
    pass_: Annotated[
        str | None, Option("--pass", help="fprop, dgrad or wgrad instead of what the problems say.")
    ] = None,
    dtype: Annotated[str | None, Option(help="f32, f16 or bf16 instead.")] = None,
    layout: Annotated[str | None, Option(help="nhwc or nchw instead.")] = None,
    batch: Annotated[int | None, Option(help="Another batch size.")] = None,
    train: Annotated[bool, Option("--train", help="Of models: the backward passes too.")] = False,
    kernel: Annotated[str, Option(help="Only kernels of this name pattern.")] = "*",
    database: Annotated[Path | None, Option(help="Keep the tiles in this file, not in the user's.")] = None,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
) -> None:
    """Time every tile of the Triton kernels on the problems' buckets and keep the fastest.

    A tile is checked against a float64 result first; a wrong one is reported and never timed.
    """
    arguments.positive(batch, "--batch")
    arguments.one_of(pass_, arguments.PASSES, "--pass")
    arguments.one_of(dtype, ("f32", "f16", "bf16"), "--dtype")
    arguments.one_of(layout, arguments.LAYOUTS, "--layout")
    arguments.output_file(json)
    arguments.output_file(database, "--database")
    if bool(what) == bool(suite):
        raise UserError("Give problems or models, or --suite NAME: exactly one of the two.")
    from fastconv.kernels import triton as rows

    if sentence := rows.missing():
        raise UserError(sentence)
    if not torch.cuda.is_available():
        raise UserError(NO_GPU)
    corpus = arguments.suite(suite) if suite else _problems(what, batch or 1, train, layout or "nhwc")
    corpus = arguments.changed(corpus, pass_=pass_, dtype=dtype, layout=layout, n=batch)
    if _run(corpus, kernel, database, json):
        raise typer.Exit(FAILED)


def _problems(words: list[str], batch: int, train: bool, layout: str) -> Counter:
    from fastconv.problem import Problem

    found: Counter = Counter()
    for word in words:
        try:
            found[Problem(word)] += 1
        except ValueError:
            found += _of_model(arguments.source(word), batch, train, layout)
    return found


def _of_model(source: arguments.Source, batch: int, train: bool, layout: str) -> Counter:
    from fastconv.testing import capture

    calls = forward(lambda: capture.capture(source.model, source.example(batch), train=train, layout=layout))
    return capture.count(calls)


def _run(corpus: Counter, pattern: str, database: Path | None, json: Path | None) -> bool:
    """Searches, prints and keeps; whether the model's own tile was wrong anywhere."""
    from fastconv.kernels.triton import tuned
    from fastconv.testing import tune as engine

    here, file = tuned.machine(), database or tuned.path()
    # One search for a bucket: the problem that occurs most often stands for it.
    chosen = {}
    for problem, _ in corpus.most_common():
        for kernel in engine.kernels_for(problem, pattern):
            chosen.setdefault(tuned.bucket(kernel.name, problem), (kernel, problem))
    if not chosen:
        raise UserError("No Triton kernel takes any of these problems.")
    outcomes = []
    with progress("tuning", len(chosen)) as bar:
        for kernel, problem in chosen.values():
            step(bar, f"{kernel.name} {problem}", 0)
            outcome = engine.tune(kernel, problem)
            step(bar)
            if outcome:
                outcomes.append(outcome)
                _keep(outcome, here, file)
    _print(outcomes, here, file)
    if json:
        from fastconv.profiling import results

        results.write(json, {"kind": "tune", "machine": here, "outcomes": [asdict(outcome) for outcome in outcomes]})
    return any(outcome.margin is None for outcome in outcomes)


def _keep(outcome, here: str, file: Path) -> None:
    from fastconv.kernels.triton import tuned

    if outcome.winner:
        try:
            tuned.keep(file, here, {outcome.bucket: outcome.entry()})
        except OSError as error:
            raise UserError(f"The tiles cannot be kept in {file}: {error}") from None


def _print(outcomes: list, here: str, file: Path) -> None:
    screen = console()
    screen.print(here, highlight=False)
    table = Table("bucket", "problem", "model's tile", "kept", "ms", "margin")
    for outcome in outcomes:
        seconds = {trial.tile: trial.seconds for trial in outcome.trials}
        table.add_row(
            outcome.bucket,
            outcome.problem,
            "x".join(map(str, outcome.default)),
            "x".join(map(str, outcome.winner)) if outcome.winner else "-",
            milliseconds(seconds[outcome.winner]) if outcome.winner else "-",
            times(outcome.margin),
        )
    screen.print(table)
    for outcome in outcomes:
        for trial in outcome.trials:
            if trial.reason:
                tile = "x".join(map(str, trial.tile))
                screen.print(f"[red]dropped[/red] {tile} on {outcome.problem}: {trial.reason}", highlight=False)
    screen.print(f"kept in {file}", highlight=False)
