"""``fastconv bench``: every kernel of a problem next to PyTorch's, checked and timed in one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from typer import Argument, Option

from fastconv.cli import FAILED, UserError, arguments
from fastconv.cli.screen import console, milliseconds, percent, progress, step, times


def bench(
    problems: Annotated[list[str] | None, Argument(help="For example n1c64h56w56_k64r3s3_p1_f32nhwc.")] = None,
    suite: Annotated[str | None, Option("--suite", help="A corpus by name, or a file of problems.")] = None,
    pass_: Annotated[
        str | None, Option("--pass", help="fprop, dgrad or wgrad instead of what the problems say.")
    ] = None,
    dtype: Annotated[str | None, Option(help="f32, f64, f16 or bf16 instead.")] = None,
    layout: Annotated[str | None, Option(help="nhwc or nchw instead.")] = None,
    batch: Annotated[int | None, Option(help="Another batch size (with --capture: of the captured pass).")] = None,
    kernel: Annotated[str, Option(help="Only our kernels of this name pattern, besides the chosen one.")] = "*",
    cold: Annotated[bool, Option("--cold", help="Operands in no cache, instead of the same again and again.")] = False,
    seconds: Annotated[float, Option(help="Seconds of timing for each row.")] = 0.2,
    json: Annotated[Path | None, Option(help="Write every figure to this file.")] = None,
    capture: Annotated[str | None, Option(help="Print the corpus of this model instead of timing anything.")] = None,
    train: Annotated[bool, Option("--train", help="With --capture: the backward passes too.")] = False,
    size: Annotated[int | None, Option(help="With --capture: height and width of the image.")] = None,
) -> None:
    """Time every kernel that accepts the problems, and PyTorch in both layouts.

    A kernel is checked against a float64 result first; a wrong one is reported and never timed.
    """
    arguments.positive(batch, "--batch")
    arguments.positive(size, "--size")
    arguments.one_of(pass_, arguments.PASSES, "--pass")
    arguments.one_of(dtype, arguments.DTYPES, "--dtype")
    arguments.one_of(layout, arguments.LAYOUTS, "--layout")
    if not 0 < seconds < float("inf"):
        raise UserError(f"--seconds must be a positive number, but is {seconds}.")
    if sum(map(bool, (problems, suite, capture))) != 1:
        raise UserError("Give problem strings, or --suite NAME, or --capture MODEL: exactly one of the three.")
    if capture:
        return _capture(capture, batch or 1, train, size, layout or "nhwc")
    if train or size:
        raise UserError("--train and --size belong to --capture.")
    arguments.output_file(json)
    _known_kernel(kernel)
    corpus = arguments.suite(suite) if suite else Counter(arguments.problem(text) for text in problems)
    corpus = arguments.changed(corpus, pass_=pass_, dtype=dtype, layout=layout, n=batch)
    if not corpus:
        raise UserError("There is no problem left to time.")
    wrong = _run(corpus, bool(suite), suite, kernel, cold, seconds, json)
    if wrong:
        raise typer.Exit(FAILED)


def _capture(word: str, batch: int, train: bool, size: int | None, layout: str) -> None:
    from fastconv.testing import capture, corpus

    source = arguments.source(word)
    calls = forward(lambda: capture.capture(source.model, source.example(batch, size), train=train, layout=layout))
    typer.echo(corpus.dump(capture.count(calls)), nl=False)


def forward(run: Callable[[], list]) -> list:
    try:
        return run()
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"The model cannot run on that image: {error}") from None


def _known_kernel(pattern: str) -> None:
    from fnmatch import fnmatchcase

    from fastconv import registry

    if not any(fnmatchcase(kernel.name, pattern) for kernel in registry.kernels()):
        raise UserError(f"--kernel {pattern}: no kernel has such a name; 'fastconv doctor' lists them.")


def _run(
    corpus: Counter, is_suite: bool, name: str | None, kernel: str, cold: bool, seconds: float, json: Path | None
) -> bool:
    """Times, prints and writes everything; whether any kernel was wrong."""
    from fastconv.profiling import results, roofline
    from fastconv.profiling.machine import this_machine
    from fastconv.testing import bench as engine
    from fastconv.testing import summary

    screen = console()
    machine = this_machine()
    screen.print(f"{machine.cpu}, {machine.threads} threads, {machine.isa}, torch {machine.torch}", highlight=False)
    measured = []
    with progress("measuring the machine", len(corpus) + 1) as bar:
        ceilings = roofline.ceilings()
        step(bar)
        screen.print(_ceilings(ceilings), highlight=False)
        for problem in corpus:
            step(bar, str(problem), 0)
            result = engine.bench(problem, ceilings, pattern=kernel, cold=cold, seconds=seconds)
            measured.append(result)
            if not is_suite:
                _print_problem(screen, result)
            step(bar)
    counts = list(corpus.values())
    total = summary.summarise(measured, counts)
    if is_suite:
        _print_suite(screen, measured, counts, total)
    wrong = [(r.problem, row) for r in measured for row in r.rows if row.wrong]
    for problem, row in wrong:
        screen.print(f"[red]WRONG[/red] {row.kernel} on {problem}: {row.reason}", highlight=False)
    if json:
        results.write(
            json,
            {
                "kind": "bench",
                "machine": machine.as_dict(),
                "ceilings": ceilings.as_dict(),
                "suite": name,
                "cold": cold,
                "threads": torch.get_num_threads(),
                "total": total.as_dict(),
                "problems": [r.as_dict() | {"count": c} for r, c in zip(measured, counts, strict=True)],
            },
        )
    return bool(wrong)


def _ceilings(ceilings) -> str:
    rates = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in ceilings.flops.items())
    return f"measured limits: {rates}, copy {ceilings.memory / 1e9:.0f} GB/s from memory"


def _rate(problem, seconds: float) -> str:
    if problem.is_conv:
        return f"{problem.flops / seconds / 1e9:.1f} GFLOP/s"
    return f"{problem.bytes / seconds / 1e9:.1f} GB/s"


def _print_problem(screen, result) -> None:
    table = Table(
        "kernel",
        "layout",
        "ms",
        "p10 - p90",
        "rate",
        "of limit",
        "vs torch",
        title=str(result.problem),
        title_justify="left",
    )
    best = result.torch_best
    for row in result.rows:
        if row.timing is None:
            continue
        t = row.timing
        table.add_row(
            f"{row.kernel}{' (chosen)' if row.chosen else ''}",
            row.layout,
            milliseconds(t.median),
            f"{milliseconds(t.p10)} - {milliseconds(t.p90)}",
            _rate(result.problem, t.median),
            percent(result.limit / t.median),
            times(best.timing.median / t.median if best else None),
        )
    screen.print(table)
    screen.print(
        f"limit {milliseconds(result.limit)} ms by {result.bound}; checked against {result.checked_against}",
        highlight=False,
    )
    for row in result.rows:
        if row.timing is None and not row.wrong:
            screen.print(f"not timed: {row.kernel}: {row.reason}", style="dim", highlight=False)


def _print_suite(screen, measured, counts, total) -> None:
    table = Table("times", "problem", "chosen kernel", "ms", "torch ms", "layout", "vs torch", "of limit")
    for result, count in zip(measured, counts, strict=True):
        chosen, best = result.chosen, result.torch_best
        table.add_row(
            str(count),
            str(result.problem),
            chosen.kernel if chosen else "-",
            milliseconds(chosen.timing.median) if chosen else "-",
            milliseconds(best.timing.median) if best else "-",
            best.layout if best else "-",
            times(result.standing),
            percent(result.limit / chosen.timing.median if chosen else None),
        )
    screen.print(table)
    screen.print(str(total), highlight=False)
    sources = {result.checked_against for result in measured}
    screen.print(f"checked against {' and '.join(sorted(sources))}", highlight=False)
