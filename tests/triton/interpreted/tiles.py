"""Tiles small enough that a small problem has several blocks and tails, and few enough blocks for the interpreter."""

from __future__ import annotations

from fastconv.kernels.triton.configure import Tile
from fastconv.problem import Problem

BLOCKS = 6  # along the pixels, at most
SHAPES = ((16, 16, 16), (32, 16, 32), (16, 32, 16))


def small_tile(problem: Problem, number: int) -> Tile:
    """The number-th of a few shapes, with its pixels doubled until few blocks hold them."""
    m, n, k = SHAPES[number % len(SHAPES)]
    out = problem.n * problem.h.out * problem.w.out
    size = problem.n * problem.h.size * problem.w.size
    if problem.is_conv and problem.pass_ == "wgrad" and not problem.is_depthwise:
        while out > BLOCKS * k:
            k *= 2
        while problem.k // problem.groups > BLOCKS // 2 * m:
            m *= 2
        return Tile(m, 4 * n, k)
    while (size if problem.pass_ == "dgrad" or problem.is_norm else out) > BLOCKS * m:
        m *= 2
    return Tile(m, n, k)
