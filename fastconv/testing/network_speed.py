"""Whole networks, this library's ways beside those of the peers: right first, then timed in turns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.profiling import timer
from fastconv.profiling.machine import Machine, round_trip
from fastconv.profiling.timer import Timing
from fastconv.testing import ways
from fastconv.testing.summary import geomean

ERROR = 1e-5  # relative L2 error that a way of ours may have; a peer's is only told


@dataclass(frozen=True)
class Result:
    """One network at one batch. times, errors: by the name of the way; errors are relative L2, from float64.

    missing: why a peer has no time.
    """

    network: str
    batch: int
    times: dict[str, Timing]
    errors: dict[str, float]
    missing: dict[str, str]
    round_trip: float | None

    @property
    def best_peer(self) -> str:
        return min((n for n in self.times if not _is_ours(n)), key=lambda name: self.times[name].median)

    def standing(self, way: str) -> float:
        """How many times as fast as the best peer a way of ours is."""
        return self.times[self.best_peer].median / self.times[way].median

    def as_dict(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "batch": self.batch,
            "times": {name: asdict(timing) for name, timing in self.times.items()},
            "errors": self.errors,
            "missing": self.missing,
            "round_trip": self.round_trip,
        }


def _is_ours(way: str) -> bool:
    return way == "plan" or way.startswith("swapped")


def measure(name: str, model: nn.Module, x: Tensor, peers: Sequence[str], seconds: float) -> Result:
    """Runs the network every way. RuntimeError when a way of ours is further from float64 than ERROR."""
    found, missing = [], {}
    for layout in ways.FORMATS:
        found += ways.eager(model, x, layout)[:2]
    found.append(ways.plan(model, x))
    for peer in peers:
        try:
            found.append(ways.peer(peer, model, x))
        except ways.Missing as error:
            missing[peer] = str(error)
    errors = _errors(model, x, found)
    for way in found:
        if way.ours and not errors[way.name] <= ERROR:
            raise RuntimeError(f"{name}, {way.name}: its relative L2 error is {errors[way.name]:.2g}.")
    times = timer.in_turns({way.name: way.run for way in found}, seconds, rest=timer.POOL_REST)
    return Result(name, len(x), times, errors, missing, round_trip())


def _errors(model: nn.Module, x: Tensor, found: Sequence[ways.Way]) -> dict[str, float]:
    with torch.no_grad():
        exact = ways.leaves(copy.deepcopy(model).double()(x.double()))
    errors = {}
    for way in found:
        parts = zip(way.tensors(), exact, strict=True)
        errors[way.name] = max(float((y - e).norm() / e.norm()) for y, e in parts)
    return errors


def markdown(machine: Machine, results: Sequence[Result]) -> str:
    """The table, with the ratio of the plan and of the swapped model to the best of the others."""
    names = list(dict.fromkeys(name for result in results for name in result.times))
    lines = [
        f"{machine.cpu}, {machine.threads} threads, {machine.isa}; torch {machine.torch}, commit {machine.commit}, "
        f"{machine.date[:10]}. "
        f"ms a batch, 224x224, float32, medians in turns; ratios: the best of the others over ours.",
        "",
        f"| network, batch | {' | '.join(names)} | plan against the best | swapped against eager |",
        f"|{'---|' * (len(names) + 3)}",
    ]
    for result in results:
        cells = [f"{result.times[n].median * 1e3:.3g}" if n in result.times else "-" for n in names]
        eager = min(t.median for n, t in result.times.items() if n.startswith("stock"))
        swapped = min(t.median for n, t in result.times.items() if n.startswith("swapped"))
        lines.append(
            f"| {result.network} {result.batch} | {' | '.join(cells)} | {result.standing('plan'):.2f}x | "
            f"{eager / swapped:.2f}x |"
        )
    plans = geomean((result.standing("plan"), 1) for result in results)
    worst = min(results, key=lambda result: result.standing("plan"), default=None)
    if worst:
        error = max(result.errors["plan"] for result in results)
        lines += [
            "",
            f"Plans, geometric mean: {plans:.2f}x; least: {worst.network} {worst.batch}, "
            f"{worst.standing('plan'):.2f}x. "
            f"Largest error of a plan: {error:.2g} (relative L2, from float64).",
        ]
    for result in results:
        lines += [f"{result.network} {result.batch}: {sentence}" for sentence in result.missing.values()]
    return "\n".join(lines) + "\n"
