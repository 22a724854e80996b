"""The oracle of the pools, in float64 from the already rounded inputs, by code that shares nothing with the kernels.

Every window is written down as lists of input positions along each axis; values are gathered through them, a tap at a
time in row-major order, and gradients are scattered back the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastconv.problem import Problem


@dataclass(frozen=True)
class AxisWindow:
    """One window along one axis: (tap number, input position) of its taps inside the input, and its divisor."""

    taps: list[tuple[int, int]]
    divisor: int


def windows(problem: Problem, axis) -> list[AxisWindow]:
    """The windows of every output position along ``problem.h`` or ``problem.w``."""
    if problem.op.startswith("adaptive"):
        result = []
        for o in range(axis.out):
            start, end = math.floor(o * axis.size / axis.out), math.ceil((o + 1) * axis.size / axis.out)
            result.append(AxisWindow([(i - start, i) for i in range(start, end)], end - start))
        return result
    result = []
    for o in range(axis.out):
        positions = [o * axis.stride - axis.pad_lo + tap * axis.dilation for tap in range(axis.window)]
        inside = [(tap, i) for tap, i in enumerate(positions) if 0 <= i < axis.size]
        padded = [i for i in positions if i < axis.size + axis.pad_hi]
        result.append(AxisWindow(inside, len(padded) if problem.count_include_pad else len(inside)))
    return result


def _slots(problem: Problem) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For the i-th tap inside each window, in row-major order: input position, tap number and whether there is one.

    Positions and taps have shape (P, Q): a flat position in the plane and r·S + s.
    """
    (row, r, row_valid), (column, s, column_valid) = (_table(windows(problem, axis)) for axis in (problem.h, problem.w))
    return [
        (
            row[i][:, None] * problem.w.size + column[j],
            r[i][:, None] * problem.w.window + s[j],
            row_valid[i][:, None] & column_valid[j],
        )
        for i in range(len(row))
        for j in range(len(column))
    ]


def _table(axis_windows: list[AxisWindow]) -> tuple[Tensor, Tensor, Tensor]:
    """Position, tap number and validity of the i-th tap inside each window, each of shape (taps, outputs)."""
    longest = max((len(window.taps) for window in axis_windows), default=0)
    table = torch.zeros(3, longest, len(axis_windows), dtype=torch.int64)
    for o, window in enumerate(axis_windows):
        for i, (tap, position) in enumerate(window.taps):
            table[:, i, o] = torch.tensor([position, tap, 1])
    return table[0], table[1], table[2].bool()


def max_pool(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima in float64 and where they come from: int64 positions, or tap numbers when the problem's index is u8.

    torch's rule: in row-major order a value replaces the maximum when it is greater or NaN. A window without any input
    element has maximum -inf and an index that means nothing (here -1).
    """
    flat = x.double().flatten(2)
    shape = (problem.n, problem.c, problem.h.out, problem.w.out)
    best = torch.full(shape, -math.inf, dtype=torch.float64)
    index = torch.full(shape, -1, dtype=torch.int64)
    for position, tap, valid in _slots(problem):
        number = (tap if problem.index == "u8" else position).expand(shape)
        value = flat[:, :, position]
        index = torch.where(valid & (index < 0), number, index)  # the first tap counts even when it is -inf
        take = valid & ((value > best) | value.isnan())
        best, index = torch.where(take, value, best), torch.where(take, number, index)
    return best, index


def max_pool_gradient(problem: Problem, dy: Tensor, index: Tensor) -> Tensor:
    """dx of a max pool in float64: every dy goes to the position its index names."""
    dx = torch.zeros(problem.n, problem.c, problem.h.size * problem.w.size, dtype=torch.float64)
    for position, tap, valid in _slots(problem):
        number = tap if problem.index == "u8" else position
        part = torch.where(valid & (index.long() == number), dy.double(), 0)
        dx.index_add_(2, position.flatten(), part.flatten(2))
    return dx.unflatten(2, (problem.h.size, problem.w.size))


def divisors(problem: Problem) -> Tensor:
    """The divisor of every output position, shape (P, Q)."""
    if problem.divisor_override:
        return torch.full((problem.h.out, problem.w.out), float(problem.divisor_override), dtype=torch.float64)
    rows = torch.tensor([v.divisor for v in windows(problem, problem.h)], dtype=torch.float64)
    columns = torch.tensor([h.divisor for h in windows(problem, problem.w)], dtype=torch.float64)
    return (rows[:, None] * columns).clamp(min=1)


def average(problem: Problem, x: Tensor) -> Tensor:
    """Averages in float64."""
    flat = x.double().flatten(2)
    total = torch.zeros(problem.n, problem.c, problem.h.out, problem.w.out, dtype=torch.float64)
    for position, _, valid in _slots(problem):
        total += torch.where(valid, flat[:, :, position], 0)
    return total / divisors(problem)


def average_gradient(problem: Problem, dy: Tensor) -> Tensor:
    """dx of an average pool in float64."""
    share = dy.double() / divisors(problem)
    dx = torch.zeros(problem.n, problem.c, problem.h.size * problem.w.size, dtype=torch.float64)
    for position, _, valid in _slots(problem):
        dx.index_add_(2, position.flatten(), torch.where(valid, share, 0).flatten(2))
    return dx.unflatten(2, (problem.h.size, problem.w.size))


def unpool(problem: Problem, x: Tensor, index: Tensor) -> Tensor:
    """Unpooling in float64: zeros, and x where the index says; the last of equal indices wins."""
    y = torch.zeros(problem.n, problem.c, problem.h.out * problem.w.out, dtype=torch.float64)
    values, places = x.double().flatten(2), index.flatten(2)
    for i in range(values.shape[2]):
        y.scatter_(2, places[:, :, i : i + 1], values[:, :, i : i + 1])
    return y.unflatten(2, (problem.h.out, problem.w.out))


def unpool_gradient(problem: Problem, dy: Tensor, index: Tensor) -> Tensor:
    """dx of unpooling in float64: dy read where the index says."""
    rows, columns = index // problem.w.out, index % problem.w.out
    n = torch.arange(problem.n)[:, None, None, None]
    c = torch.arange(problem.c)[:, None, None]
    return dy.double()[n, c, rows, columns]
