"""Times candidates against each other on the CPU: warmed up, in turns, medians with their spread.

In turns (A B C A B C ...) a slow moment of the machine hits every candidate alike, so that ratios hold even where
absolute times do not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

# What one candidate runs: a single call over and over (data warm in the caches), or calls on different buffers whose
# sum is larger than the last cache, one after the other (data cold).
Calls = Callable[[], object] | Sequence[Callable[[], object]]

POOL_REST = 0.1  # seconds in which the threads of another runtime fall asleep; on a Zen 5 20 ms were too few
TURNS = 15  # samples of every candidate; odd, so that the median is one of them
FEWEST_TURNS = 5  # of a candidate whose single call takes longer than its share
SHORTEST_SAMPLE = 200e-6  # seconds; below this the clock and the loop around the calls would show
WARM_UP = 3  # calls before the first sample: plans, primitives, page faults and clocks settle
LONG = 20e-3  # seconds; calls beyond warm up in one, and filling the caches again is a few percent of them


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median sample and the tenth and ninetieth percentiles; ``calls`` were timed in all."""

    median: float
    p10: float
    p90: float
    calls: int

    @property
    def spread(self) -> float:
        """(p90 - p10) / median."""
        return (self.p90 - self.p10) / self.median


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which ``fraction`` of the sorted values lie, interpolated. ``values`` must not be empty."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@dataclass
class _Candidate:
    calls: Sequence[Callable[[], object]]
    samples: list[float]
    repeats: int = 1
    spent: float = 0.0
    once: float = 0.0

    def run(self, repeats: int, first: int) -> float:
        """Seconds of ``repeats`` calls, going round from call number ``first``."""
        batch = [self.calls[(first + i) % len(self.calls)] for i in range(repeats)]
        start = perf_counter()
        for call in batch:
            call()
        return perf_counter() - start

    def calibrate(self, share: float) -> None:
        """Warms up and chooses how many calls make a sample of about ``share`` seconds."""
        self.once = self.run(1, 0)
        for i in range(1, WARM_UP if self.once < LONG else 1):
            self.once = min(self.once, self.run(1, i))
        self.repeats = max(1, round(max(share, SHORTEST_SAMPLE) / self.once))

    def sample(self, first: int) -> None:
        if len(self.calls) == 1 and self.once < LONG:
            self.run(1, 0)  # takes the caches back from the candidate before
        seconds = self.run(self.repeats, first)
        self.spent += seconds
        self.samples.append(seconds / self.repeats)

    def done(self, seconds: float) -> bool:
        return len(self.samples) >= TURNS or (len(self.samples) >= FEWEST_TURNS and self.spent >= seconds)

    def timing(self) -> Timing:
        median, p10, p90 = (percentile(self.samples, fraction) for fraction in (0.5, 0.1, 0.9))
        return Timing(median, p10, p90, len(self.samples) * self.repeats)


def in_turns(
    candidates: Mapping[str, Calls],
    seconds: float = 0.2,
    on_turn: Callable[[], object] | None = None,
    rest: float = 0.0,
) -> dict[str, Timing]:
    """Times every candidate for about ``seconds`` each, in turns.

    on_turn: called after each turn (for a progress bar).
    rest: seconds of sleep before each candidate's turn. Candidates that have threads of their own need it: an idle pool
        spins on for some milliseconds, on the processors of the next candidate.
    """
    runs = {
        name: _Candidate(calls if isinstance(calls, Sequence) else (calls,), []) for name, calls in candidates.items()
    }
    collecting = gc.isenabled()
    gc.disable()
    try:
        for run in runs.values():
            run.calibrate(seconds / TURNS)
        position = 0
        while any(not run.done(seconds) for run in runs.values()):
            for run in runs.values():
                if not run.done(seconds):
                    if rest:
                        sleep(rest)
                    # Candidates may share buffers: each goes on where the one before stopped.
                    run.sample(position)
                    position += run.repeats
            if on_turn is not None:
                on_turn()
    finally:
        if collecting:
            gc.enable()
    return {name: run.timing() for name, run in runs.items()}
