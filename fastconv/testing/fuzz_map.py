"""Random problems of what lies between convolutions, for :mod:`fastconv.testing.fuzz`."""

from __future__ import annotations

import random

from fastconv.problem import Problem

CHANNELS = (1, 2, 3, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 65, 130)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 14, 16, 17, 28, 33, 70)
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
MAX_ELEMENTS = 30_000
SLICED = 0.3  # share of the problems that read a slice, and of those that write one
MOST_BESIDE = 9  # channels before and behind a slice


def random_problem(rng: random.Random, op: str) -> Problem:
    """Any problem of this op: every dtype, layout, slice and epilogue it has."""
    while True:
        n, c, h, w = rng.choice((1, 1, 2, 3, 5)), rng.choice(CHANNELS), rng.choice(SIZES), rng.choice(SIZES)
        out = f"_o{rng.choice(SIZES)}x{rng.choice(SIZES)}" if op in ("bilinear2d", "nearest2d") else ""
        problem = Problem(f"{op}_n{n}c{c}h{h}w{w}{out}_{rng.choice(('f32', 'f64', 'f16', 'bf16'))}nhwc")
        if n * c * max(h * w, problem.h.out * problem.w.out) <= MAX_ELEMENTS:
            break
    problem = problem.replace(layout=rng.choice(("nchw", "nhwc")))
    if op == "reorder2d":
        return problem
    if op == "nearest2d":
        return with_slices(rng, problem)
    if op == "bilinear2d":
        return with_slices(rng, problem.replace(corners=rng.random() < 0.5))
    changes = {"scale": rng.random() < 0.6, "residual": rng.random() < 0.4, "activation": rng.choice(ACTIVATIONS)}
    if changes["activation"] == "leaky_relu":
        changes["alpha"] = rng.choice((0.01, 0.1, 0.25))
    return with_slices(rng, problem.replace(**changes))


def with_slices(rng: random.Random, problem: Problem) -> Problem:
    """The same between channel slices of larger buffers, at times."""
    for first, whole in (("in_offset", "in_channels"), ("out_offset", "out_channels")):
        if rng.random() < SLICED:
            before = rng.randint(0, MOST_BESIDE)
            problem = problem.replace(**{first: before, whole: before + problem.c + rng.randint(0, MOST_BESIDE)})
    return problem
