"""fastconv::conv2d, conv2d_act, conv2d_dgrad, conv2d_wgrad: shapes for tracing, FLOPs for counting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fastconv import dispatch as dispatch  # installs the planner the operators ask


def output_size(size: int, window: int, stride: int, padding: int, dilation: int) -> int:
    """P or Q of a convolution; ``padding`` is the sum of both sides."""
    return (size + padding - dilation * (window - 1) - 1) // stride + 1


def _format(a: Tensor, b: Tensor) -> torch.memory_format:
    """The layout of the result: channels_last when either operand is, except in float64, as torch decides it."""
    for tensor in (a, b):
        if tensor.dtype != torch.float64 and torch._prims_common.suggest_memory_format(tensor) == torch.channels_last:
            return torch.channels_last
    return torch.contiguous_format


def _fprop_shape(x, weight, stride, padding, dilation) -> list[int]:
    spatial = [
        output_size(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[2 * i] + padding[2 * i + 1], dilation[i])
        for i in range(2)
    ]
    return [x.shape[0], weight.shape[0], *spatial]


@torch.library.register_fake("fastconv::conv2d")
def _(x, weight, bias, stride, padding, dilation, groups):
    return x.new_empty(_fprop_shape(x, weight, stride, padding, dilation)).to(memory_format=_format(x, weight))


@torch.library.register_fake("fastconv::conv2d_act")
def _(x, weight, bias, residual, stride, padding, dilation, groups, activation, alpha):
    return x.new_empty(_fprop_shape(x, weight, stride, padding, dilation)).to(memory_format=_format(x, weight))


@torch.library.register_fake("fastconv::conv2d_dgrad")
def _(dy, weight, bias, input_size, stride, padding, dilation, groups):
    shape = [dy.shape[0], weight.shape[1] * groups, *input_size]
    return dy.new_empty(shape).to(memory_format=_format(dy, weight))


@torch.library.register_fake("fastconv::conv2d_wgrad")
def _(dy, x, kernel_size, stride, padding, dilation, groups, channels_last):
    format = torch.channels_last if channels_last else torch.contiguous_format
    return dy.new_empty([dy.shape[1], x.shape[1] // groups, *kernel_size]).to(memory_format=format)


def _flops(y_shape: Sequence[int], channels_per_group: int, window: Sequence[int]) -> int:
    n, k, p, q = y_shape
    return 2 * n * k * p * q * channels_per_group * window[0] * window[1]


@register_flop_formula([torch.ops.fastconv.conv2d, torch.ops.fastconv.conv2d_act])
def _(x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(out_shape, w_shape[1], w_shape[2:])


@register_flop_formula(torch.ops.fastconv.conv2d_dgrad)
def _(dy_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(dy_shape, w_shape[1], w_shape[2:])


@register_flop_formula(torch.ops.fastconv.conv2d_wgrad)
def _(dy_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(dy_shape, out_shape[1], out_shape[2:])
