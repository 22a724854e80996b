"""Which kernel runs a step of a plan: the estimate decides, as in eager mode, but the filter may be packed already."""

from __future__ import annotations

from dataclasses import dataclass

from fastconv import dispatch
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.settings import Settings


@dataclass(frozen=True)
class Selection:
    """A kernel and the problem it gets: the same that was asked for, or with a packed filter."""

    kernel: Kernel
    problem: Problem


class NoKernel(RuntimeError):
    """No kernel of this library runs a step; the message has their sentences."""


def by_estimate(problem: Problem, active: Settings) -> Selection:
    """The kernel with the least estimate of those that take the filter packed, or as it is."""
    found = [s for s in (_best(p, active) for p in _forms(problem)) if s is not None]
    if not found:
        rows = [f"{row.kernel.name}: {row.reason}" for row in candidates(problem, active)]
        raise NoKernel(f"No kernel runs {problem} in a plan. " + " ".join(rows))
    return min(found, key=lambda pair: pair[0])[1]


def candidates(problem: Problem, active: Settings) -> list[dispatch.Candidate]:
    """What eager mode would consider, without PyTorch's operators: a plan runs native kernels."""
    return [row for row in dispatch.candidates(problem, active=active) if row.kernel.native is not None]


def _forms(problem: Problem) -> list[Problem]:
    return [problem.replace(packed=True), problem] if problem.is_conv else [problem]


def _best(problem: Problem, active: Settings) -> tuple[float, Selection] | None:
    accepting = [row for row in candidates(problem, active) if row.reason is None]
    if not accepting:
        return None
    best = dispatch.cheapest(accepting)
    # Kernels without an estimate stand before the others in the list because they are better where they accept.
    return (best.seconds or 0.0, Selection(best.kernel, problem)) if best else None
