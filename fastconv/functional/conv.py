"""Convolutions with torch.nn.functional's names, argument order and defaults."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv import ops as ops  # registers the operators
from fastconv.functional.arguments import Ints, as_tuple, batched, sides

_conv2d = torch.ops.fastconv.conv2d.default
_conv2d_act = torch.ops.fastconv.conv2d_act.default
_conv2d_dgrad = torch.ops.fastconv.conv2d_dgrad.default


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution, ``torch.nn.functional.conv2d``'s signature and result.

    input: (N, C, H, W) or (C, H, W); weight: (K, C/groups, R, S); bias: (K). Returns (N, K, P, Q) or (K, P, Q).
    Raises what torch raises (RuntimeError for shapes, dtypes and geometry), before anything is allocated.
    """
    x, isbatched = batched(input, 2, "conv2d")
    stride, dilation = as_tuple(stride, 2, "stride"), as_tuple(dilation, 2, "dilation")
    y = _conv2d(x, weight, bias, stride, sides(padding, weight.shape[2:], stride, dilation), dilation, groups)
    return y if isbatched else y.squeeze(0)
