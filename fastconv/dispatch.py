"""Which kernel runs a problem, and why not the others: the one place that decides.

The extension asks :func:`plan` once per problem and remembers the answer, so nothing here is on the hot path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastconv import registry, settings
from fastconv._native import C
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.settings import Settings


@dataclass(frozen=True)
class Candidate:
    """A kernel of the problem's op and pass, and the sentence that keeps it from running (None: it could)."""

    kernel: Kernel
    reason: str | None


def candidates(problem: Problem, device: str = "cpu", active: Settings | None = None) -> list[Candidate]:
    """Every kernel for this op and pass in order of preference, each with its reason under the settings in force."""
    active = active or settings.current()
    return [
        Candidate(kernel, _refuses_device(kernel, device) or active.refuses(kernel) or kernel.refuses(problem))
        for kernel in registry.kernels()
        if kernel.computes(problem)
    ]


def plan(problem: Problem, device: str = "cpu") -> Kernel:
    """The first kernel that accepts the problem.

    When the patterns of ``config(kernel=...)`` leave none, the whole list decides, unless ``strict`` is set: then
    RuntimeError names the problem and the settings.
    """
    active = settings.current()
    attempts = [active] if active.strict else [active, replace(active, kernel="*")]
    for attempt in attempts:
        for row in candidates(problem, device, attempt):
            if row.reason is None:
                return row.kernel
    raise RuntimeError(f"No kernel accepts {problem} on {device} under {active}.")


def _refuses_device(kernel: Kernel, device: str) -> str | None:
    if device in kernel.devices:
        return None
    return f"It runs on {' and '.join(kernel.devices)} tensors, not on {device}."


def forget() -> None:
    """Drops every remembered plan; the next call of each problem plans anew."""
    C.clear_plans()


C.set_planner(plan)
