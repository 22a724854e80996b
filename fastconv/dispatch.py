"""Which kernel runs a problem, and why not the others: the one place that decides.

The extension asks :func:`plan` once per problem and remembers the answer, so nothing here is on the hot path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastconv import registry, settings
from fastconv._native import C
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.settings import Settings


@dataclass(frozen=True)
class Candidate:
    """A kernel of the problem's op and pass, and the sentence that keeps it from running (None: it could).

    seconds: estimated on a nominal core, where the kernel could run and is compared by cost.
    """

    kernel: Kernel
    reason: str | None
    seconds: float | None = None


def candidates(problem: Problem, device: str = "cpu", active: Settings | None = None) -> list[Candidate]:
    """Every kernel for this op and pass in order of preference, each with its reason under the settings in force."""
    active = active or settings.current()
    # The bits must not depend on the number of threads, so the choice must not either.
    threads = 1 if active.deterministic else torch.get_num_threads()
    rows = []
    for kernel in registry.kernels():
        if kernel.computes(problem):
            reason = _refuses_device(kernel, device) or active.refuses(kernel) or kernel.refuses(problem)
            rows.append(Candidate(kernel, reason, None if reason else kernel.estimate(problem, threads)))
    return rows


def plan(problem: Problem, device: str = "cpu") -> Kernel:
    """The first kernel that accepts the problem or, where that one is compared by cost, the one of its instruction set
    with the least estimate.

    When the patterns of ``config(kernel=...)`` leave none, the whole list decides, unless ``strict`` is set: then
    RuntimeError names the problem and the settings.
    """
    active = settings.current()
    attempts = [active] if active.strict else [active, replace(active, kernel="*")]
    for attempt in attempts:
        accepting = [row for row in candidates(problem, device, attempt) if row.reason is None]
        if accepting:
            return cheapest(accepting).kernel
    raise RuntimeError(f"No kernel accepts {problem} on {device} under {active}.")


def cheapest(accepting: list[Candidate]) -> Candidate:
    first = accepting[0]
    rivals = [row for row in accepting if row.kernel.target == first.kernel.target and row.seconds is not None]
    return first if first.seconds is None else min(rivals, key=lambda row: row.seconds)


def _refuses_device(kernel: Kernel, device: str) -> str | None:
    if device in kernel.devices:
        return None
    return f"It runs on {' and '.join(kernel.devices)} tensors, not on {device}."


def forget() -> None:
    """Drops every remembered plan; the next call of each problem plans anew."""
    C.clear_plans()


C.set_planner(plan)
