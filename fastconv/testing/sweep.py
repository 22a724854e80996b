"""Rates of the algorithms along one axis at a time around a centre, beside torch's, and the cliffs in them.

A sweep finds what a corpus of well-known layers hides: sizes just beside the usual ones. Sizes stand close together
around the powers of two, so that a loss at one size shows between its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby

import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.profiling import timer
from fastconv.registry import Kernel
from fastconv.testing import bench, corpus, oracle, peer

TORCH = "torch"  # the better of its two layouts
LAYOUTS = ("nhwc", "nchw")
AXES = {
    "batch": (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 32, 33, 48, 63, 64),
    "map": (
        *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 17, 20, 24, 28, 31, 32, 33, 40, 48, 56, 63, 64, 65),
        *(80, 96, 112, 128, 129, 160, 192, 224, 256, 320, 384, 448, 512),
    ),
    "channels": (
        *(1, 2, 3, 4, 5, 6, 8, 12, 15, 16, 17, 24, 31, 32, 33, 40, 48, 56, 63, 64, 65, 80, 96, 112, 127, 128, 129),
        *(160, 192, 224, 255, 256, 257, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048),
    ),
}
# Where the axes cross, and the problem there.
CENTRE = {"batch": 1, "map": 28, "channels": 64}
FAMILIES = {
    "3x3": ("n{batch}c{channels}h{map}w{map}_k{channels}r3s3_p1_f32nhwc", CENTRE),
    "1x1": ("n{batch}c{channels}h{map}w{map}_k{channels}r1s1_f32nhwc", CENTRE),
    "5x5": ("n{batch}c{channels}h{map}w{map}_k{channels}r5s5_p2_f32nhwc", CENTRE),
    "3x3 stride 2": ("n{batch}c{channels}h{map}w{map}_k{channels}r3s3_u2_p1_f32nhwc", CENTRE),
    "grouped 3x3": (  # 32 groups, of so many channels each
        "n{batch}c{of_32_groups}h{map}w{map}_k{of_32_groups}r3s3_p1_g32_f32nhwc",
        {"batch": 1, "map": 28, "channels": 4},
    ),
    "depthwise 3x3": ("n{batch}c{channels}h{map}w{map}_k{channels}r3s3_p1_g{channels}_f32nhwc", CENTRE),
    "tiny 3x3": ("n{batch}c{channels}h{map}w{map}_k{channels}r3s3_p1_f32nhwc", {"batch": 1, "map": 4, "channels": 1}),
}
# The last value of an axis: 2048 channels, and where the kernel for a handful of products has long refused.
LAST = {"grouped 3x3": {"channels": 64}, "tiny 3x3": {"batch": 4, "map": 10, "channels": 4}}
CLIFF = 0.6  # of both neighbours


@dataclass(frozen=True)
class Point:
    """The rates of one problem, in FLOP/s by algorithm and for :data:`TORCH`; value: of the axis."""

    family: str
    axis: str
    value: int
    threads: int
    problem: Problem
    rates: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """For JSON: rates in GFLOP/s."""
        rates = {name: float(f"{rate / 1e9:.4g}") for name, rate in self.rates.items()}
        return asdict(self) | {"problem": str(self.problem), "rates": rates}


@dataclass(frozen=True)
class Cliff:
    """A point whose rate is below :data:`CLIFF` of both its neighbours'; share: of the slower one's."""

    family: str
    axis: str
    threads: int
    who: str
    value: int
    problem: str
    share: float

    def __str__(self) -> str:
        return (
            f"{self.who}, {self.threads} threads, {self.family} along {self.axis}: {self.value} runs at "
            f"{self.share:.2f} of its slower neighbour ({self.problem})"
        )


def problems(pass_: str) -> Iterator[tuple[str, str, int, Problem]]:
    """Family, axis, value and problem of every point, axis after axis, in rising order."""
    for family, (text, centre) in FAMILIES.items():
        for axis, values in AXES.items():
            for value in values:
                if value <= LAST.get(family, {}).get(axis, value):
                    sizes = centre | {axis: value}
                    problem = Problem(text.format(**sizes, of_32_groups=32 * sizes["channels"]))
                    yield family, axis, value, corpus.backward(problem, pass_)


def algorithms() -> list[str]:
    """Those of every hand-written convolution kernel, in the order of the list."""
    rows = (k for k in registry.kernels() if k.op == "conv2d" and k.native is not None and not k.is_reference)
    return list(dict.fromkeys(k.algorithm for k in rows))


def kernel_of(algorithm: str, problem: Problem) -> tuple[Kernel, Problem] | None:
    """The algorithm's kernel of the widest instruction set, and the problem in the layout it takes (channels_last if
    it takes both). None where it takes neither.
    """
    rows = [k for k in registry.kernels() if k.algorithm == algorithm and k.computes(problem) and k.native is not None]
    for layout in LAYOUTS:
        laid = problem.replace(layout=layout)
        for row in rows:
            if row.refuses(laid) is None:
                return row, laid
    return None


@contextmanager
def using(threads: int) -> Iterator[None]:
    """torch, and so every kernel, on so many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def rates(problem: Problem, threads: Sequence[int], seconds: float) -> dict[int, dict[str, float]]:
    """FLOP/s by number of threads and by algorithm: those that take the problem, and torch.

    Every result is checked first; RuntimeError names one that is wrong.
    """
    exact = oracle.ask(problem)
    tensors = {at: bench.operand_sets(exact.tensors, problem.replace(layout=at), cold=False)[0] for at in LAYOUTS}
    calls = {f"{TORCH} {at}": peer.torch_call(problem.replace(layout=at), tensors[at]) for at in LAYOUTS}
    for algorithm in algorithms():
        found = kernel_of(algorithm, problem)
        if found is None:
            continue
        kernel, laid = found
        call = bench.Entrant(kernel, laid, chosen=False).call(tensors[laid.layout])
        wrong = exact.verdict_of_call(call(), tensors[laid.layout], kernel.name)
        if wrong:
            raise RuntimeError(f"{kernel.name} on {laid}: {wrong}")
        calls[algorithm] = call
    found = {}
    for count in threads:
        with using(count):
            timings = timer.in_turns(calls, seconds)
        own = {name: problem.flops / timings[name].median for name in calls if not name.startswith(TORCH)}
        best = min(timings[f"{TORCH} {at}"].median for at in LAYOUTS)
        found[count] = own | {TORCH: problem.flops / best}
    return found


def series(points: Sequence[Point]) -> Iterator[tuple[Point, str, list[tuple[Point, float]]]]:
    """Every line of the plots: its first point, whose it is, and its points with their rates, in the order given."""

    def line(point: Point) -> tuple[str, str, int]:
        return point.family, point.axis, point.threads

    for _, group in groupby(sorted(points, key=line), line):
        along = list(group)
        for who in (*algorithms(), TORCH):
            rated = [(point, point.rates[who]) for point in along if who in point.rates]
            if rated:
                yield along[0], who, rated


def cliffs(points: Sequence[Point]) -> list[Cliff]:
    """Where a line falls below :data:`CLIFF` of both neighbours. Points of an axis come in rising order."""
    found = []
    for first, who, rated in series(points):
        for (_, before), (point, rate), (_, after) in zip(rated, rated[1:], rated[2:], strict=False):
            if rate < CLIFF * min(before, after):
                share = rate / min(before, after)
                found.append(
                    Cliff(first.family, first.axis, first.threads, who, point.value, str(point.problem), share)
                )
    return found
