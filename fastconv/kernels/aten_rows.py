"""PyTorch's operators for what works on rows of channels, as ordinary rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv.kernels.aten_map import part
from fastconv.kernels.aten_norm import EPS
from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cpu", "cuda")


def rows() -> list[Kernel]:
    """One row for each op of rows."""
    return [
        Kernel("layernorm2d/fprop_aten", "layernorm2d", "fprop", DEVICES, _refuses, layer_norm),
        Kernel("softmax2d/fprop_aten", "softmax2d", "fprop", DEVICES, _refuses, softmax),
        Kernel("copy2d/fprop_aten", "copy2d", "fprop", DEVICES, _refuses, copy),
        Kernel("attention/fprop_aten", "attention", "fprop", DEVICES, _refuses, attention),
    ]


def _refuses(problem: Problem) -> str | None:
    if problem.bias or problem.residual or problem.activation != "none" or problem.out_channels:
        return "PyTorch's operator has no epilogue and no channel slice."
    return None


def _in_layout(problem: Problem, y: Tensor) -> Tensor:
    return y.contiguous(memory_format=torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format)


def layer_norm(
    problem: Problem, *, x: Tensor, w: Tensor | None = None, bias: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """``torch.nn.functional.layer_norm`` over the channels, as the last axis of a view."""
    x = part(problem, x)
    w, bias = (None if t is None else t.to(x.dtype) for t in (w, bias))
    y = F.layer_norm(x.permute(0, 2, 3, 1), (problem.c,), w, bias, eps)
    return _in_layout(problem, y.permute(0, 3, 1, 2))


def softmax(problem: Problem, *, x: Tensor) -> Tensor:
    """``torch.softmax`` over the channels."""
    return _in_layout(problem, torch.softmax(part(problem, x), 1))


def copy(problem: Problem, *, x: Tensor) -> Tensor:
    """New memory in the problem's layout."""
    format = torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format
    return x.clone(memory_format=format)


def attention(
    problem: Problem,
    *,
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    factor: float | None = None,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``; operands (N, heads, tokens, channels)."""
    y = F.scaled_dot_product_attention(x, keys, values, mask, scale=factor)
    return _in_layout(problem, y.permute(0, 1, 3, 2).reshape(problem.n, problem.k, problem.h.size, 1))
