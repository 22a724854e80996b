"""Random normalisation problems for :mod:`fastconv.testing.fuzz`."""

from __future__ import annotations

import random

from fastconv.problem import Problem
from fastconv.testing.fuzz_map import with_slices

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 129, 130, 257, 520)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 14, 15, 17, 28, 33, 56, 100)
WINDOWS = (1, 2, 3, 4, 5, 5, 7, 8, 11, 20)
ACTIVATIONS = ("none", "relu", "relu6")
MAX_ELEMENTS = 60_000  # beyond several blocks of either layout


def random_problem(rng: random.Random, pass_: str) -> Problem:
    """Any batch norm of this pass: every dtype, layout, mode and, forwards, epilogue."""
    while True:
        n, c, h, w = rng.choice((1, 1, 2, 3, 5, 9)), rng.choice(CHANNELS), rng.choice(SIZES), rng.choice(SIZES)
        if n * c * h * w <= MAX_ELEMENTS:
            break
    dtype, layout = rng.choice(("f32", "f64", "f16", "bf16")), rng.choice(("nchw", "nhwc"))
    train = rng.choice(("", "_train"))
    problem = Problem(f"batchnorm2d_n{n}c{c}h{h}w{w}_{dtype}{layout}{train}").replace(pass_=pass_)
    if pass_ == "fprop" and not problem.training:
        problem = with_slices(rng, problem)
    if pass_ != "fprop" or rng.random() < 0.5:
        return problem
    return problem.replace(residual=rng.random() < 0.5, activation=rng.choice(ACTIVATIONS))


def random_response(rng: random.Random, pass_: str) -> Problem:
    """Any local response norm of this pass; windows may be wider than there are channels."""
    problem = random_problem(rng, pass_)
    size = rng.choice(WINDOWS)
    return Problem(f"lrn2d_n{problem.n}c{problem.c}h{problem.h.size}w{problem.w.size}_size{size}_f32nhwc").replace(
        pass_=pass_,
        dtype=problem.dtype,
        layout=problem.layout,
        residual=problem.residual,
        activation=problem.activation,
    )
