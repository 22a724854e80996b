"""PyTorch's own operators as ordinary rows: the yardstick every other kernel is measured against.

They stand behind the hand-written kernels and before the references, run on every device, and take the dtypes the
hand-written kernels do not know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.kernels import aten_map, aten_norm, aten_pool, aten_rows
from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cpu", "cuda")


def rows() -> list[Kernel]:
    """One row per pass of a convolution, of every pool, of the norms and of what lies between them."""
    return [
        Kernel("conv2d/fprop_aten", "conv2d", "fprop", DEVICES, _refuses, conv_fprop),
        Kernel("conv2d/dgrad_aten", "conv2d", "dgrad", DEVICES, _refuses_dgrad, conv_dgrad),
        Kernel("conv2d/wgrad_aten", "conv2d", "wgrad", DEVICES, _refuses, conv_wgrad),
        *aten_pool.rows(),
        *aten_norm.rows(),
        *aten_map.rows(),
        *aten_rows.rows(),
    ]


def _refuses(problem: Problem) -> str | None:
    if problem.out_channels:
        return "PyTorch's operator cannot write into a channel slice of a larger buffer."
    return None


def _refuses_dgrad(problem: Problem) -> str | None:
    h, w = problem.h, problem.w
    if (h.pad_lo, w.pad_lo) != (h.pad_hi, w.pad_hi):
        return f"Its padding is symmetric, but the problem's is {h.pad_lo}:{h.pad_hi} x {w.pad_lo}:{w.pad_hi}."
    return _refuses(problem)


def _finish(problem: Problem, y: Tensor, residual: Tensor | None) -> Tensor:
    if residual is not None:
        y = y + residual
    return aten_map.activation(problem, y)


def _geometry(problem: Problem) -> tuple[list[int], list[int], list[int]]:
    h, w = problem.h, problem.w
    return [h.stride, w.stride], [h.pad_lo, w.pad_lo], [h.dilation, w.dilation]


def conv_fprop(
    problem: Problem, *, x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """``aten::convolution`` behind an explicit pad where the padding is asymmetric."""
    stride, padding, dilation = _geometry(problem)
    h, v = problem.h, problem.w
    if (h.pad_lo, v.pad_lo) != (h.pad_hi, v.pad_hi):
        x = torch.nn.functional.pad(x, (v.pad_lo, v.pad_hi, h.pad_lo, h.pad_hi))
        padding = [0, 0]
    y = torch.ops.aten.convolution(x, w, bias, stride, padding, dilation, False, [0, 0], problem.groups)
    return _finish(problem, y, residual)


def conv_dgrad(
    problem: Problem, *, y: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """``aten::convolution`` transposed, which is the input gradient of the convolution."""
    stride, padding, dilation = _geometry(problem)
    extra = [
        axis.size - ((axis.out - 1) * axis.stride - 2 * axis.pad_lo + axis.dilation * (axis.window - 1) + 1)
        for axis in (problem.h, problem.w)
    ]
    dx = torch.ops.aten.convolution(y, w, bias, stride, padding, dilation, True, extra, problem.groups)
    return _finish(problem, dx, residual)


def conv_wgrad(problem: Problem, *, y: Tensor, x: Tensor) -> Tensor:
    """The weight gradient of ``aten::convolution_backward``."""
    stride, padding, dilation = _geometry(problem)
    h, v = problem.h, problem.w
    if (h.pad_lo, v.pad_lo) != (h.pad_hi, v.pad_hi):
        x = torch.nn.functional.pad(x, (v.pad_lo, v.pad_hi, h.pad_lo, h.pad_hi))
        padding = [0, 0]
    weight = x.new_empty(problem.k, problem.c // problem.groups, h.window, v.window)
    return torch.ops.aten.convolution_backward(
        y, x, weight, None, stride, padding, dilation, False, [0, 0], problem.groups, [False, True, False]
    )[1]
