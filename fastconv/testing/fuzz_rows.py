"""Random problems of what works on rows of channels, for :mod:`fastconv.testing.fuzz`."""

from __future__ import annotations

import random

from fastconv.problem import Problem
from fastconv.testing.fuzz_map import with_slices

CHANNELS = (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 130, 197, 260)
SIZES = (1, 1, 2, 3, 4, 5, 7, 9, 14)
TOKENS = (1, 2, 3, 7, 16, 31, 32, 33, 49, 65, 100)
MAX_ELEMENTS = 30_000


def random_problem(rng: random.Random, op: str) -> Problem:
    """Any problem of this op: every dtype, and of rows every layout and slice it has."""
    dtype = rng.choice(("f32", "f64", "f16", "bf16"))
    while True:
        n, c = rng.choice((1, 1, 2, 3)), rng.choice(CHANNELS)
        if op == "attention":
            heads, wide = rng.choice((1, 1, 2, 3, 5)), rng.choice(CHANNELS)
            queries, keys = rng.choice(TOKENS), rng.choice(TOKENS)
            text = f"n{n}c{heads * c}h{queries}w1_k{heads * wide}r{keys}s1_g{heads}_{dtype}nhwc"
            if n * heads * queries * keys * (c + wide) <= MAX_ELEMENTS * 30:
                return Problem(f"attention_{text}").replace(mask=rng.random() < 0.4)
            continue
        h, w = rng.choice(SIZES), rng.choice(SIZES)
        if n * c * h * w <= MAX_ELEMENTS:
            break
    problem = Problem(f"{op}_n{n}c{c}h{h}w{w}_{dtype}nhwc")
    if op == "copy2d":
        return problem
    return with_slices(rng, problem.replace(layout=rng.choice(("nhwc", "nhwc", "nchw"))))
