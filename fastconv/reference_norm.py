"""The oracle of the norms, in float64 from the already rounded operands, by code that shares nothing with the
kernels: the definitions, a batch norm's with one sum over everything but the channels, a local response norm's with a
matrix of zeros and ones in place of its windows.
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


def _windows(problem: Problem) -> Tensor:
    """1 where channel j (column) lies in the window of channel i (row)."""
    i, j = torch.arange(problem.c)[:, None], torch.arange(problem.c)
    return ((j >= i - problem.size // 2) & (j <= i + (problem.size - 1) // 2)).double()


def response_base(problem: Problem, x: Tensor, alpha: float, k: float) -> Tensor:
    """What a local response norm raises to its power: k + alpha times the mean square of each window."""
    return k + alpha / problem.size * torch.einsum("ij,njhw->nihw", _windows(problem), x.double().square())


def respond(problem: Problem, x: Tensor, residual: Tensor | None, alpha: float, beta: float, k: float) -> Tensor:
    """y of a local response norm."""
    return epilogue(problem, x.double() * response_base(problem, x, alpha, k) ** -beta, None, residual)


def response_gradient(
    problem: Problem, dy: Tensor, x: Tensor, alpha: float, beta: float, k: float
) -> tuple[Tensor, Tensor]:
    """dx of a local response norm, and the same with every term by its size."""
    base, dy, x = response_base(problem, x, alpha, k), dy.double(), x.double()

    bend = 2 * alpha * beta / problem.size

    def gradient(dy: Tensor, x: Tensor, bend: float) -> Tensor:
        far = torch.einsum("ji,njhw->nihw", _windows(problem), dy * x * base ** (-beta - 1))
        return dy * base**-beta + bend * x * far

    return gradient(dy, x, -bend), gradient(dy.abs(), x.abs(), abs(bend))
