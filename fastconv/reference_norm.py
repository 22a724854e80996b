"""The oracle of batch normalisation, in float64 from the already rounded operands, by code that shares nothing with the
kernels: the definition, with one sum over everything but the channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.reference import epilogue

_REST = (0, 2, 3)  # every axis but the channels'


def _over(channel: Tensor | None, otherwise: float) -> Tensor:
    """One value a channel against (N, C, H, W)."""
    if channel is None:
        return torch.tensor(otherwise, dtype=torch.float64)
    return channel.double()[:, None, None]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, shape (C)."""
    mean = x.double().mean(_REST)
    return mean, (x.double() - mean[:, None, None]).square().mean(_REST)


def normalize(
    problem: Problem,
    x: Tensor,
    w: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    eps: float,
) -> Tensor:
    """y; the batch's own statistics take the place of ``mean`` and ``variance`` where the problem trains."""
    if problem.training:
        mean, variance = statistics(x)
    y = (x.double() - _over(mean, 0)) / (_over(variance, 1) + eps).sqrt() * _over(w, 1) + _over(bias, 0)
    return epilogue(problem, y, None, residual)


def gradients(
    problem: Problem, dy: Tensor, x: Tensor, w: Tensor | None, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """dx, and dweight and dbias as one (2, C) tensor, by the given statistics: in training x's own, whose derivatives
    dx then holds too.
    """
    inverse = 1 / (_over(variance, 1) + eps).sqrt()
    normal, dy = (x.double() - _over(mean, 0)) * inverse, dy.double()
    pair = torch.stack([(dy * normal).sum(_REST), dy.sum(_REST)])
    dx = dy
    if problem.training:
        count = problem.n * problem.h.size * problem.w.size
        dx = dy - (pair[1][:, None, None] + normal * pair[0][:, None, None]) / count
    return dx * inverse * _over(w, 1), pair
