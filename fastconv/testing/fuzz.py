"""Random problems, and one command that holds every native kernel against the oracle on them:

    python -m fastconv.testing.fuzz --count 20000 --seed 0

Every algorithm of every op and pass meets so many problems whose exact result it must equal bit by bit, on each of its
instruction sets (and some problems of real values besides, held to an error bound). A failure prints the call that
repeats it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fastconv import registry
from fastconv.problem import Problem
from fastconv.reference_map import OPS as MAPS
from fastconv.reference_rows import OPS as ROWS
from fastconv.registry import Kernel
from fastconv.testing import check_map, check_norm, check_rows, fuzz_map, fuzz_norm, fuzz_pool, fuzz_rows, tolerances
from fastconv.testing.check import check_conv, is_exact
from fastconv.testing.check_pool import check_pool

CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65)
GROUPS = (1, 1, 1, 1, 2, 3, 4, 8, 17, 32)
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17, 23, 28, 35)
WINDOWS = (1, 1, 2, 3, 3, 3, 4, 5, 7)
STRIDES = (1, 1, 1, 2, 2, 3, 4)
ACTIVATIONS = (
    "none",
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "silu",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "gelu",
    "gelutanh",
)
ORDINARY = 0.2  # share of dense 3x3 convolutions of stride 1: they have kernels of their own
SQUARE = 0.3  # share of 3x3 and 5x5 filters with equal strides and no dilation: many kernels have a way of their own
OFFSETS = 16  # element offsets a buffer may start at, so that every alignment occurs
# Keeps one check at milliseconds: the oracle and the reference kernel are slow.
MAX_FLOPS = 3e6
# Draws until an algorithm that takes few problems takes one; the matrix products take nearly all.
ATTEMPTS = 20_000
INTEGER = 0.9  # share of the problems whose operands are small integers


def random_problem(
    rng: random.Random, max_flops: float = MAX_FLOPS, pass_: str | None = None, *, pointwise: bool = False
) -> Problem:
    """Any convolution: every dtype, layout, geometry (also negative high-side padding), epilogue and slice, of the pass
    or of every pass. pointwise: with filters of 1x1, which are few among all, in one group and without padding.
    """
    while True:
        problem = _candidate(rng, pass_ or rng.choice(("fprop", "dgrad", "wgrad")), pointwise)
        if problem is not None and problem.flops <= max_flops:
            return problem


def _axis(rng: random.Random, both: tuple[int, int, int] | None) -> tuple[int, ...]:
    """Size, window, stride, padding low and high, dilation of one axis. both: window, stride and dilation, if the axes
    have the same.
    """
    window, stride, dilation = both or (rng.choice(WINDOWS), rng.choice(STRIDES), rng.choice((1, 1, 1, 2, 3)))
    reach = dilation * (window - 1) + 1
    low = rng.choice((0, window // 2, rng.randint(0, reach + 1)))
    high = rng.choice((low, low, rng.randint(0, reach + 1), -rng.randint(0, 3)))
    return rng.choice(SIZES), window, stride, low, high, dilation


def _pointwise_axis(rng: random.Random) -> tuple[int, ...]:
    """As :func:`_axis`, for a filter of one tap."""
    return rng.choice(SIZES), 1, rng.choice(STRIDES), 0, -rng.choice((0, 0, 0, 1, 3)), 1


def _candidate(rng: random.Random, pass_: str, pointwise: bool) -> Problem | None:
    kind = rng.random()
    ordinary = kind < ORDINARY
    square = (rng.choice((3, 3, 5)), rng.choice((1, 1, 2)), 1) if kind < ORDINARY + SQUARE else None
    both = (3, 1, 1) if ordinary else square
    h, w = (_pointwise_axis(rng) if pointwise else _axis(rng, both) for _ in range(2))
    if any(size + low + high < dilation * (window - 1) + 1 for size, window, _, low, high, dilation in (h, w)):
        return None
    groups, cg, kg = 1 if ordinary or pointwise else rng.choice(GROUPS), rng.choice(CHANNELS), rng.choice(CHANNELS)
    if groups > 1 and rng.random() < 0.4:
        cg = kg = 1
    n, dtype, layout = (
        rng.choice((1, 1, 2, 3, 5)),
        rng.choice(("f32", "f64", "f16", "bf16")),
        rng.choice(("nchw", "nhwc")),
    )
    problem = Problem(
        f"n{n}c{groups * cg}h{h[0]}w{w[0]}_k{groups * kg}r{h[1]}s{w[1]}_u{h[2]}x{w[2]}"
        f"_p{h[3]}:{h[4]}x{w[3]}:{w[4]}_d{h[5]}x{w[5]}_g{groups}_{dtype}{layout}"
    ).replace(pass_=pass_)
    if problem.pass_ == "wgrad" or rng.random() < 0.4:
        return problem
    activation = rng.choice(ACTIVATIONS)
    changes = {"bias": rng.random() < 0.6, "residual": rng.random() < 0.3, "activation": activation}
    if activation == "leaky_relu":
        changes["alpha"] = rng.choice((0.01, 0.1, 0.25))
    if rng.random() < 0.25:
        written = problem.c if problem.pass_ == "dgrad" else problem.k
        offset = rng.randint(0, 9)
        changes |= {"out_offset": offset, "out_channels": offset + written + rng.randint(0, 9)}
    return problem.replace(**changes)


@dataclass
class Tally:
    """How many checks each kernel passed: on integers, by equality, and on real values, within the error bound.

    The results of average pools, of batch norms in training and of local response norms are rounded quotients of exact
    sums; they count as integers, within their bound.
    """

    exact: Counter[str] = field(default_factory=Counter)
    bounded: Counter[str] = field(default_factory=Counter)

    def met(self, kernel: Kernel) -> int:
        """How many problems count: the exact ones, or all of an algorithm that is never exact."""
        return self.exact[kernel.name] + (self.bounded[kernel.name] if kernel.algorithm in tolerances.INEXACT else 0)

    def __str__(self) -> str:
        rows = [f"{self.exact[name]:9d} {self.bounded[name]:9d}  {name}" for name in self.exact]
        return "\n".join([f"{'exact':>9s} {'bounded':>9s}  kernel", *rows])


def without_target(kernel: Kernel) -> str:
    """The kernel's name without its instruction set."""
    return kernel.name.rsplit("_", 1)[0]


def fuzz(count: int, seed: int = 0, kernels: str = "") -> Tally:
    """Checks random problems until every algorithm met ``count`` exact ones, on every instruction set of this machine.

    kernels: only kernels whose name contains this. Raises AssertionError with the kernel, the problem and the call that
    repeats the failure.
    """
    groups: dict[str, list[Kernel]] = {}
    for kernel in registry.kernels():
        if kernel.native is not None and kernels in kernel.name:
            groups.setdefault(without_target(kernel), []).append(kernel)
    tally, hungry = Tally(Counter({k.name: 0 for rows in groups.values() for k in rows})), dict(groups)
    while hungry:
        rng = random.Random(seed)
        problem = _problem_for(rng, hungry[rng.choice(sorted(hungry))])
        make = _conv_check if problem.is_conv else _norm_check if problem.is_norm else _pool_check
        make = _map_check if problem.op in MAPS else _rows_check if problem.op in ROWS else make
        check = make(rng, problem, seed)
        for rows in list(hungry.values()):
            for kernel in rows:
                if kernel.computes(problem) and kernel.refuses(problem) is None:
                    check(kernel)
                    exact = check.exact and kernel.algorithm not in tolerances.INEXACT
                    (tally.exact if exact else tally.bounded)[kernel.name] += 1
        hungry = {name: rows for name, rows in hungry.items() if max(map(tally.met, rows)) < count}
        seed += 1
    return tally


@dataclass(frozen=True)
class _Check:
    """One check, ready for any kernel: the function, the problem and its options."""

    function: Callable[..., None]
    problem: Problem
    options: dict[str, object]
    exact: bool

    def __call__(self, kernel: Kernel) -> None:
        try:
            self.function(kernel, self.problem, **self.options)
        except AssertionError as error:
            raise AssertionError(
                f"{error} Repeat with: {self.function.__name__}(registry.kernel({kernel.name!r}), "
                f"Problem({str(self.problem)!r}), {', '.join(f'{k}={v!r}' for k, v in self.options.items())})"
            ) from None


def _problem_for(rng: random.Random, rows: list[Kernel]) -> Problem:
    """A random problem that at least one of the kernels takes."""
    op, pass_ = rows[0].op, rows[0].pass_
    for _ in range(ATTEMPTS):
        if op == "conv2d":
            problem = random_problem(rng, pass_=pass_)
        elif op == "batchnorm2d":
            problem = fuzz_norm.random_problem(rng, pass_)
        elif op == "lrn2d":
            problem = fuzz_norm.random_response(rng, pass_)
        elif op in ROWS:
            problem = fuzz_rows.random_problem(rng, op)
        elif op in MAPS:
            problem = fuzz_map.random_problem(rng, op)
        else:
            problem = fuzz_pool.random_problem(rng, op, pass_)
        if any(kernel.refuses(problem) is None for kernel in rows):
            return problem
    raise AssertionError(f"None of {ATTEMPTS} random problems is accepted by {without_target(rows[0])}.")


def _conv_check(rng: random.Random, problem: Problem, seed: int) -> _Check:
    integer = rng.random() < INTEGER
    options = {
        "seed": seed,
        "integer": integer,
        "offset": rng.randrange(OFFSETS),
        "weight_channels_last": rng.random() < 0.5,
        "threads": rng.choice((1, 2, 3)),
        "weight_gap": rng.choice((0, 0, 0, 1, 2)),
    }
    return _Check(check_conv, problem, options, integer and is_exact(problem))


def _pool_check(rng: random.Random, problem: Problem, seed: int) -> _Check:
    """Maxima are equal to the last bit whatever the data, NaN and infinities included."""
    selects = problem.op == "unpool2d" or (problem.pass_ == "fprop" and "max" in problem.op)
    kind = rng.choice(("ties", "special", "normal")) if selects else "ties" if rng.random() < INTEGER else "normal"
    options = {"kind": kind, "seed": seed, "offset": rng.randrange(OFFSETS), "threads": rng.choice((1, 2, 3))}
    return _Check(check_pool, problem, options, selects or kind == "ties")


def _map_check(rng: random.Random, problem: Problem, seed: int) -> _Check:
    """Interpolated integers are within the bound: their weights are none."""
    kind = rng.choice(("integers", "special")) if rng.random() < INTEGER else "normal"
    options = {"kind": kind, "seed": seed, "offset": rng.randrange(OFFSETS), "threads": rng.choice((1, 2, 3))}
    return _Check(check_map.check_map, problem, options, kind != "normal")


def _rows_check(rng: random.Random, problem: Problem, seed: int) -> _Check:
    """Integers count, within the bound: no root and no power of theirs is exact."""
    kind = rng.choice(("integers", "special")) if rng.random() < INTEGER else "normal"
    options = {"kind": kind, "seed": seed, "offset": rng.randrange(OFFSETS), "threads": rng.choice((1, 2, 3))}
    return _Check(check_rows.check_rows, problem, options, kind != "normal")


def _norm_check(rng: random.Random, problem: Problem, seed: int) -> _Check:
    """In training, integers are within the bound too: their mean need not be one."""
    kind = "integers" if rng.random() < INTEGER else rng.choice(("normal", "shifted"))
    options = {
        "kind": kind,
        "seed": seed,
        "offset": rng.randrange(OFFSETS),
        "threads": rng.choice((1, 2, 3)),
        "affine": rng.random() < 0.7,
    }
    return _Check(check_norm.check_norm, problem, options, kind == "integers")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="how many exact problems for every algorithm")
    parser.add_argument("--seed", type=int, default=0, help="the first problem's seed")
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    try:
        print(fuzz(options.count, options.seed, options.kernels))
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
