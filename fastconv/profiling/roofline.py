"""The limits of this machine, measured in the run that uses them: multiply-adds in registers, and a large copy.

No kernel can be faster than ``max(FLOPs / peak, bytes / bandwidth)``: every operand read once, the result written
once, all arithmetic at full rate. Winograd needs fewer multiplications than the count says and may pass 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from time import perf_counter

import torch

from fastconv._native import C
from fastconv.problem import Problem
from fastconv.profiling import machine

# The best of many short runs of about a millisecond, far longer than starting the threads and far shorter than a time
# slice: a ceiling must not suffer from what else the machine does in between.
TRIES = 50
ROUNDS = 1 << 18  # of multiply-adds in one run
COPIED = 1 << 26  # bytes read and written in one run, at least
# Footprints (source + destination) of the copies, besides one of four times the last cache.
CACHED_FOOTPRINTS = tuple(1 << shift for shift in (17, 19, 21, 23))
BEYOND_CACHE = 4


@dataclass(frozen=True)
class Ceilings:
    """FLOP/s by precision ("f32" also stands for f16 and bf16, which are summed in f32) and copy rates.

    copies: (footprint in bytes, bytes read and written a second), by rising footprint; the last is far larger than
    the last cache.
    """

    flops: dict[str, float]
    copies: tuple[tuple[int, float], ...]

    @property
    def memory(self) -> float:
        """Bytes a second of a copy that does not fit any cache."""
        return self.copies[-1][1]

    def bandwidth(self, footprint: float, cold: bool = False) -> float:
        """Bytes a second for data of this size: from memory when cold, else from wherever so much data stays."""
        if cold:
            return self.memory
        return max(rate for size, rate in self.copies if size >= min(footprint, self.copies[-1][0]))

    def limit(self, problem: Problem, cold: bool = False) -> float:
        """The least seconds the problem can take."""
        precision = "f64" if problem.dtype == "f64" else "f32"
        return max(problem.flops / self.flops[precision], problem.bytes / self.bandwidth(problem.bytes, cold))

    def bound(self, problem: Problem, cold: bool = False) -> str:
        """What limits the problem: "arithmetic" or "bytes"."""
        precision = "f64" if problem.dtype == "f64" else "f32"
        by_bytes = problem.bytes / self.bandwidth(problem.bytes, cold)
        return "arithmetic" if problem.flops / self.flops[precision] >= by_bytes else "bytes"

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def measure() -> Ceilings:
    """Measures every ceiling; takes a second or two, on all of torch's threads."""
    footprints = (*CACHED_FOOTPRINTS, BEYOND_CACHE * machine.last_cache())
    return Ceilings(
        flops={"f32": _multiply_add_rate(wide=False), "f64": _multiply_add_rate(wide=True)},
        copies=tuple((size, _copy_rate(size)) for size in footprints),
    )


@cache
def ceilings() -> Ceilings:
    """The ceilings of this process, measured once."""
    return measure()


def _best_rate(run: Callable[[], float]) -> float:
    """The best of some runs, each returning the amount of its work, as amount a second."""

    def rate() -> float:
        start = perf_counter()
        amount = run()
        return amount / (perf_counter() - start)

    return max(rate() for _ in range(TRIES))


def _multiply_add_rate(wide: bool) -> float:
    # The two widest sets: the wider one may run at a lower clock.
    return max(_burst_rate(isa, wide) for isa in machine.isas()[-2:])


def _burst_rate(isa: str, wide: bool) -> float:
    """The sum over the threads, which run at once, of each one's best."""
    runs = [C.fma_burst(isa, wide, ROUNDS) for _ in range(TRIES)]
    return sum(max(flops / seconds for flops, seconds in thread) for thread in zip(*runs, strict=True))


def _copy_rate(footprint: int) -> float:
    source = torch.rand(footprint // 8)  # half of the footprint, in floats
    target = torch.empty_like(source)
    repetitions = max(1, COPIED // footprint)

    def copy() -> float:
        for _ in range(repetitions):
            target.copy_(source)
        return float(repetitions * footprint)

    return _best_rate(copy)
