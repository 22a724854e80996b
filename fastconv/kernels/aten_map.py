"""PyTorch's operators for what lies between convolutions, as ordinary rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cpu", "cuda")
_ACTIVATIONS = {
    "none": lambda x, alpha: x,
    "relu": lambda x, alpha: torch.relu(x),
    "relu6": lambda x, alpha: torch.nn.functional.relu6(x),
    "leaky_relu": torch.nn.functional.leaky_relu,
    "silu": lambda x, alpha: torch.nn.functional.silu(x),
    "hardswish": lambda x, alpha: torch.nn.functional.hardswish(x),
    "sigmoid": lambda x, alpha: torch.sigmoid(x),
    "gelu": lambda x, alpha: torch.nn.functional.gelu(x),
}


def activation(problem: Problem, x: Tensor) -> Tensor:
    """The problem's activation, an operator of its own."""
    return _ACTIVATIONS[problem.activation](x, problem.alpha)


def part(problem: Problem, x: Tensor) -> Tensor:
    """The channels the problem reads of the buffer ``x``, a view."""
    return x.narrow(1, problem.in_offset, problem.c) if problem.in_channels else x


def rows() -> list[Kernel]:
    """One row for each of map2d, reorder2d and bilinear2d."""
    return [
        Kernel("map2d/fprop_aten", "map2d", "fprop", DEVICES, _refuses, map_),
        Kernel("reorder2d/fprop_aten", "reorder2d", "fprop", DEVICES, _refuses, reorder),
        Kernel("bilinear2d/fprop_aten", "bilinear2d", "fprop", DEVICES, _refuses, bilinear),
    ]


def _refuses(problem: Problem) -> str | None:
    if problem.out_channels:
        return "PyTorch's operator cannot write into a channel slice of a larger buffer."
    return None


def map_(problem: Problem, *, x: Tensor, scale: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """A product, a sum and an activation, each where the problem has it; a copy where it has none."""
    y = part(problem, x)
    if scale is not None:
        y = y * scale[:, :, None, None]
    if residual is not None:
        y = y + residual
    y = activation(problem, y)
    return y.clone() if y.data_ptr() == x.data_ptr() else y


def reorder(problem: Problem, *, x: Tensor) -> Tensor:
    """``contiguous`` in the other layout."""
    turned = torch.channels_last if problem.layout == "nchw" else torch.contiguous_format
    return part(problem, x).contiguous(memory_format=turned)


def bilinear(problem: Problem, *, x: Tensor) -> Tensor:
    """``torch.nn.functional.interpolate``; it takes its places in float where x is no float64."""
    size = (problem.h.out, problem.w.out)
    x = part(problem, x)
    return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=problem.corners)
