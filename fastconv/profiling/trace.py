"""Records every operator call: its problem, the kernel that ran it, and how long it took on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastconv._native import C
from fastconv.problem import Problem


@dataclass(frozen=True)
class Call:
    """One finished call. ``seconds`` is wall time of the kernel alone (on a GPU: of its launch)."""

    problem: Problem
    kernel: str
    seconds: float


@contextmanager
def trace() -> Iterator[list[Call]]:
    """Records calls from every thread while the block runs, in the order they finish.

    >>> with trace() as calls:
    ...     model(x)
    >>> calls[0].kernel
    """
    calls: list[Call] = []
    with report(calls.append):
        yield calls


_sinks: dict[object, Callable[[Call], object]] = {}


@contextmanager
def report(sink: Callable[[Call], object]) -> Iterator[None]:
    """Hands every call to ``sink`` as it finishes, while the block runs. Blocks may overlap; each sees every call.

    What ``sink`` raises is raised by the call.
    """
    block = object()
    _sinks[block] = sink
    C.set_trace(_hand_out)
    try:
        yield
    finally:
        del _sinks[block]
        if not _sinks:
            C.set_trace(None)


def _hand_out(problem: Problem, kernel: str, seconds: float) -> None:
    call = Call(problem, kernel, seconds)
    for sink in tuple(_sinks.values()):
        sink(call)
