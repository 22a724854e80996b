"""Learning rates over a run, as data: what a paper says about its steps, independent of how long this run is.

Progress is the share of all steps that is done, 0 to 1, so a short run passes through the same stages as a long one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """The rate is multiplied by `factor` at each of these shares of the run."""

    at: tuple[float, ...]
    factor: float = 0.1

    def scale(self, progress: float) -> float:
        return self.factor ** sum(progress >= share for share in self.at)

    def __str__(self) -> str:
        return f"times {self.factor:g} after {', '.join(f'{share:.0%}' for share in self.at)} of the run"


@dataclass(frozen=True)
class Stairs:
    """The rate is multiplied by `factor`, `times` times at equal distances."""

    factor: float
    times: float

    def scale(self, progress: float) -> float:
        return self.factor ** math.floor(progress * self.times)

    def __str__(self) -> str:
        return f"times {self.factor:g}, {self.times:g} times over the run"


@dataclass(frozen=True)
class Polynomial:
    """(1 - progress) ** power: power 0 is constant, 1 a straight line to nothing."""

    power: float

    def scale(self, progress: float) -> float:
        return (1 - progress) ** self.power

    def __str__(self) -> str:
        return "constant" if self.power == 0 else f"(1 - progress) to the power {self.power:g}"


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to nothing."""

    def scale(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2

    def __str__(self) -> str:
        return "half a cosine"


@dataclass(frozen=True)
class Plateau:
    """Times `factor` when the held-out error has not fallen for `patience` epochs, at most `most` times.

    What the papers did by hand. Its state is in `Watch`; progress plays no part.
    """

    factor: float = 0.1
    patience: int = 5
    most: int = 3

    def scale(self, progress: float) -> float:
        return 1.0

    def __str__(self) -> str:
        return f"times {self.factor:g} when the error has not fallen for {self.patience} epochs, {self.most} times"


Schedule = Steps | Stairs | Polynomial | Cosine | Plateau


@dataclass
class Watch:
    """How a run stands on its plateau: the least error, epochs since then, and how often the rate fell."""

    best: float = math.inf
    waited: int = 0
    drops: int = 0

    def scale(self, schedule: Schedule) -> float:
        """The factor of the drops so far."""
        return schedule.factor**self.drops if isinstance(schedule, Plateau) else 1.0

    def see(self, schedule: Schedule, error: float) -> None:
        """Takes in the held-out error of one more epoch."""
        if error < self.best:
            self.best, self.waited = error, 0
            return
        self.waited += 1
        if isinstance(schedule, Plateau) and self.waited >= schedule.patience and self.drops < schedule.most:
            self.drops, self.waited = self.drops + 1, 0
