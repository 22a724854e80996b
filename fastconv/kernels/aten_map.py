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
    "hardsigmoid": lambda x, alpha: torch.nn.functional.hardsigmoid(x),
    "sigmoid": lambda x, alpha: torch.sigmoid(x),
    "gelu": lambda x, alpha: torch.nn.functional.gelu(x),
    "gelutanh": lambda x, alpha: torch.nn.functional.gelu(x, approximate="tanh"),
}


def activation(problem: Problem, x: Tensor) -> Tensor:
    """The problem's activation, an operator of its own."""
    return _ACTIVATIONS[problem.activation](x, problem.alpha)


def part(problem: Problem, x: Tensor) -> Tensor:
    """The channels the problem reads of the buffer ``x``, a view."""
    return x.narrow(1, problem.in_offset, problem.c) if problem.in_channels else x


def rows() -> list[Kernel]:
    """One row for each op of maps."""
    return [
        Kernel("map2d/fprop_aten", "map2d", "fprop", DEVICES, _refuses, map_),
        Kernel("reorder2d/fprop_aten", "reorder2d", "fprop", DEVICES, _refuses, reorder),
        Kernel("bilinear2d/fprop_aten", "bilinear2d", "fprop", DEVICES, _refuses, bilinear),
        Kernel("nearest2d/fprop_aten", "nearest2d", "fprop", DEVICES, _refuses_nearest, nearest),
    ]


def _refuses(problem: Problem) -> str | None:
    if problem.out_channels:
        return "PyTorch's operator cannot write into a channel slice of a larger buffer."
    return None


def takes_torch_s_pixels(size: int, out: int, scale_factor: float | None = None) -> bool:
    """Whether torch, which takes the nearest pixel's place in floating point, picks the pixels o·size // out.

    scale_factor: as interpolate was given it; None where it was given the size.
    """
    exact = torch.arange(out) * size // max(out, 1)
    for dtype in (torch.float32, torch.float64):
        scale = (
            torch.tensor(size, dtype=dtype) / out if scale_factor is None else torch.tensor(1 / scale_factor).to(dtype)
        )
        if not torch.equal((torch.arange(out, dtype=dtype) * scale).long().clamp(max=size - 1), exact):
            return False
    return True


def _refuses_nearest(problem: Problem) -> str | None:
    for axis in (problem.h, problem.w):
        if not takes_torch_s_pixels(axis.size, axis.out):
            return f"PyTorch takes places in float, and other pixels on the way from {axis.size} to {axis.out}."
    return _refuses(problem)


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


def nearest(problem: Problem, *, x: Tensor) -> Tensor:
    """``torch.nn.functional.interpolate`` of the nearest pixels."""
    return torch.nn.functional.interpolate(part(problem, x), (problem.h.out, problem.w.out), mode="nearest")
