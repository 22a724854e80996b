"""Random convolution problems, and one command that holds every native kernel against the oracle on them:

    python -m fastconv.testing.fuzz --count 20000 --seed 0

A failure prints the call that repeats it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter

from fastconv import registry
from fastconv.problem import Problem
from fastconv.testing.check import check_conv

CHANNELS = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65)
GROUPS = (1, 1, 1, 1, 2, 3, 4, 8, 17, 32)
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17, 23, 28)
WINDOWS = (1, 1, 2, 3, 3, 3, 4, 5, 7)
ACTIVATIONS = ("none", "none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "sigmoid", "gelu")
ORDINARY = 0.2  # share of dense 3x3 convolutions of stride 1: they have kernels of their own
OFFSETS = 16  # element offsets a buffer may start at, so that every alignment occurs
# Keeps one check at milliseconds: the oracle and the reference kernel are slow.
MAX_FLOPS = 3e6


def random_problem(rng: random.Random, max_flops: float = MAX_FLOPS) -> Problem:
    """Any convolution: every pass, dtype, layout, geometry (also negative high-side padding), epilogue and slice."""
    while True:
        problem = _candidate(rng)
        if problem is not None and problem.flops <= max_flops:
            return problem


def _axis(rng: random.Random, ordinary: bool) -> tuple[int, ...]:
    """Size, window, stride, padding low and high, dilation of one axis."""
    window, dilation = (3, 1) if ordinary else (rng.choice(WINDOWS), rng.choice((1, 1, 1, 2, 3)))
    reach = dilation * (window - 1) + 1
    low = rng.choice((0, window // 2, rng.randint(0, reach + 1)))
    high = rng.choice((low, low, rng.randint(0, reach + 1), -rng.randint(0, 3)))
    return rng.choice(SIZES), window, 1 if ordinary else rng.choice((1, 1, 1, 2, 2, 3, 4)), low, high, dilation


def _candidate(rng: random.Random) -> Problem | None:
    ordinary = rng.random() < ORDINARY
    h, w = _axis(rng, ordinary), _axis(rng, ordinary)
    if any(size + low + high < dilation * (window - 1) + 1 for size, window, _, low, high, dilation in (h, w)):
        return None
    groups, cg, kg = 1 if ordinary else rng.choice(GROUPS), rng.choice(CHANNELS), rng.choice(CHANNELS)
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
    ).replace(pass_=rng.choice(("fprop", "dgrad", "wgrad")))
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


def fuzz(count: int, seed: int = 0, kernels: str = "") -> Counter[str]:
    """Checks ``count`` random problems on every native kernel that accepts them; returns how many each kernel ran.

    kernels: only kernels whose name contains this. Raises AssertionError with the kernel, the problem and the call that
    repeats the failure.
    """
    rows = [k for k in registry.kernels() if k.op == "conv2d" and k.native is not None and kernels in k.name]
    ran: Counter[str] = Counter({kernel.name: 0 for kernel in rows})
    for i in range(seed, seed + count):
        rng = random.Random(i)
        problem = random_problem(rng)
        options = {
            "seed": i,
            "integer": rng.random() < 0.75,
            "offset": rng.randrange(OFFSETS),
            "weight_channels_last": rng.random() < 0.5,
            "threads": rng.choice((1, 2, 3)),
        }
        for kernel in rows:
            if not kernel.computes(problem) or kernel.refuses(problem) is not None:
                continue
            try:
                check_conv(kernel, problem, **options)
            except AssertionError as error:
                raise AssertionError(
                    f"{error} Repeat with: check_conv(registry.kernel({kernel.name!r}), Problem({str(problem)!r}), "
                    f"{', '.join(f'{k}={v}' for k, v in options.items())})"
                ) from None
            ran[kernel.name] += 1
    return ran


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="how many problems")
    parser.add_argument("--seed", type=int, default=0, help="the first problem's seed")
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    try:
        ran = fuzz(options.count, options.seed, options.kernels)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    for name, times in ran.items():
        print(f"{times:8d}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
