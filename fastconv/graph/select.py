"""Which kernel runs a step of a plan: the estimate decides, as in eager mode, but the filter may be packed already; or
what is measured (:mod:`fastconv.graph.measure`)."""

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


@dataclass(frozen=True)
class Policy:
    """How a plan chooses its kernels; the words are those of :func:`fastconv.optimize`."""

    winograd: bool = True
    tune: bool = False


class NoKernel(RuntimeError):
    """No kernel of this library runs a step; the message has their sentences."""


def by_estimate(problem: Problem, active: Settings) -> Selection:
    """What eager mode would take, if every kernel that packs its filter found it packed."""
    found = offers(problem, active)
    best = dispatch.cheapest([row for row, _ in found]).kernel
    return next(selection for row, selection in found if row.kernel is best)


def offers(problem: Problem, active: Settings) -> list[tuple[dispatch.Candidate, Selection]]:
    """The kernels that accept a problem, in order of preference, each with a packed filter where it takes one."""
    rows = {row.kernel.name: (row, problem) for row in candidates(problem, active)}
    if problem.is_conv:
        packed = problem.replace(packed=True)
        rows |= {row.kernel.name: (row, packed) for row in candidates(packed, active) if row.reason is None}
    accepting = [(row, Selection(row.kernel, asked)) for row, asked in rows.values() if row.reason is None]
    if not accepting:
        reasons = " ".join(f"{name}: {row.reason}" for name, (row, _) in rows.items())
        raise NoKernel(f"No kernel runs {problem} in a plan. {reasons}")
    return accepting


def candidates(problem: Problem, active: Settings) -> list[dispatch.Candidate]:
    """What eager mode would consider, without PyTorch's operators: a plan runs native kernels."""
    return [row for row in dispatch.candidates(problem, active=active) if row.kernel.native is not None]
