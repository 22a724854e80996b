"""The oracle of what lies between convolutions (map, reorder, bilinear interpolation), in float64 from the rounded
inputs, by code that shares nothing with the kernels: interpolation takes its places as fractions.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.reference import epilogue

OPS = ("map2d", "reorder2d", "bilinear2d", "nearest2d")


def part(problem: Problem, x: Tensor) -> Tensor:
    """The channels the problem reads of the buffer ``x``."""
    return x[:, problem.in_offset : problem.in_offset + problem.c] if problem.in_channels else x


def map_(problem: Problem, x: Tensor, scale: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """x, a buffer, times a factor for each image and channel, shape (N, C), plus the residual, activated."""
    y = part(problem, x).double()
    if scale is not None:
        y = torch.einsum("nchw,nc->nchw", y, scale.double())
    return epilogue(problem, y, None, residual)


def places(size: int, out: int, corners: bool) -> list[Fraction]:
    """Where each of ``out`` pixels lies on an axis of ``size``: torch's formula."""
    if corners:
        return [Fraction(o * (size - 1), max(1, out - 1)) for o in range(out)]
    return [max(Fraction(0), (o + Fraction(1, 2)) * size / out - Fraction(1, 2)) for o in range(out)]


def interpolate(problem: Problem, x: Tensor, weighted: bool = True) -> Tensor:
    """x, a buffer, interpolated; a pixel of weight 0 is not read.

    weighted: otherwise the pixels that are read are added as they are.
    """
    y = part(problem, x).double()
    for dim, axis in ((3, problem.w), (2, problem.h)):
        y = _along(y, dim, places(axis.size, axis.out, problem.corners), weighted)
    return y


def nearest(problem: Problem, x: Tensor) -> Tensor:
    """x, a buffer; each output pixel is the input pixel that it lies in."""
    y = part(problem, x).double()
    for dim, axis in ((3, problem.w), (2, problem.h)):
        y = y.index_select(dim, torch.tensor([o * axis.size // axis.out for o in range(axis.out)], dtype=torch.int64))
    return y


def _along(x: Tensor, dim: int, at: list[Fraction], weighted: bool) -> Tensor:
    last, whole = x.shape[dim] - 1, [int(place) for place in at]
    rest = [float(place - i) if i < last else 0.0 for place, i in zip(at, whole, strict=True)]
    far = torch.tensor(rest, dtype=torch.float64).reshape([-1 if d == dim else 1 for d in range(4)])
    first = x.index_select(dim, torch.tensor([min(i, last) for i in whole], dtype=torch.int64))
    second = x.index_select(dim, torch.tensor([min(i + 1, last) for i in whole], dtype=torch.int64))
    if not weighted:
        return first + second
    return torch.where(far == 0, first, (1 - far) * first + far * second)
