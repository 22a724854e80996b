"""A corpus in a few figures: totals with multiplicities, geometric mean, the worst problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from fastconv.testing.bench import Result


@dataclass(frozen=True)
class Total:
    """Sums over a corpus, every problem as often as it occurs. Only problems where both sides were timed count.

    own, torch: seconds; torch is the better layout problem by problem. limit: the least seconds.
    geomean, worst: of torch / own over the problems, each weighted by its multiplicity; None without any.
    """

    problems: int
    calls: int
    own: float
    torch: float
    limit: float
    geomean: float | None
    worst: float | None
    worst_problem: str | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if self.geomean is None:
            return "No problem was timed on both sides."
        return (
            f"{self.problems} problems, {self.calls} calls: {self.own * 1e3:.4g} ms, torch {self.torch * 1e3:.4g} ms "
            f"({self.torch / self.own:.2f}x), limit {self.limit * 1e3:.4g} ms ({self.limit / self.own * 100:.0f} %); "
            f"geomean {self.geomean:.2f}x, min {self.worst:.2f}x ({self.worst_problem})"
        )


def geomean(values: Iterable[tuple[float, int]]) -> float:
    """Geometric mean of (value, weight) pairs."""
    pairs = list(values)
    return math.exp(sum(w * math.log(v) for v, w in pairs) / sum(w for _, w in pairs))


def summarise(results: Sequence[Result], counts: Sequence[int]) -> Total:
    """The figures of a corpus."""
    both = [(r, c) for r, c in zip(results, counts, strict=True) if r.standing is not None]
    worst = min((r for r, _ in both), key=lambda r: r.standing, default=None)
    return Total(
        problems=len(both),
        calls=sum(c for _, c in both),
        own=sum(c * r.chosen.timing.median for r, c in both),
        torch=sum(c * r.torch_best.timing.median for r, c in both),
        limit=sum(c * r.limit for r, c in both),
        geomean=geomean((r.standing, c) for r, c in both) if both else None,
        worst=worst.standing if worst else None,
        worst_problem=str(worst.problem) if worst else None,
    )
