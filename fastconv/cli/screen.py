"""What every verb prints with: one console, progress bars for people, units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

NARROWEST = 160  # columns of a table written to a file or a pipe


def console() -> Console:
    """The terminal, or a plain wide page when the output goes elsewhere."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=max(NARROWEST, terminal.width))


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """A bar on stderr that disappears when done; only where somebody looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.disable = not bar.console.is_terminal
    with bar:
        bar.add_task(what, total=total)
        yield bar


def step(bar: Progress, what: str | None = None, advance: float = 1) -> None:
    """One step further, under a new description."""
    bar.update(bar.task_ids[0], advance=advance, description=what)


def milliseconds(seconds: float) -> str:
    """Four digits: "12.34", "0.1234"."""
    return f"{seconds * 1e3:.4g}"


def percent(share: float | None) -> str:
    """ "83 %", or "-"."""
    return "-" if share is None else f"{share * 100:.0f} %"


def times(ratio: float | None) -> str:
    """ "1.73x", or "-"."""
    return "-" if ratio is None else f"{ratio:.2f}x"
