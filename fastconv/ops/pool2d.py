"""The pooling operators: shapes for tracing. torch counts no FLOPs for pools, and neither do we."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv import dispatch as dispatch  # installs the planner the operators ask

MAX_BYTE_TAPS = 255  # windows of more taps keep int64 positions instead of a byte


def output_size(size: int, window: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """P or Q of a pool; ``padding`` is that of one side. With ceil_mode the last window starts inside the input."""
    span = size + 2 * padding - dilation * (window - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    out = (span + stride - 1) // stride + 1
    return out - 1 if (out - 1) * stride >= size + padding else out


def _format(x: Tensor) -> torch.memory_format:
    return torch._prims_common.suggest_memory_format(x)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _nowhere(x: Tensor, window: list[int], spatial: list[int]) -> str:
    """What csrc/bindings/pool_problem.cpp says of a window that fits nowhere."""
    size, window, out = (f"{height}x{width}" for height, width in (x.shape[2:], window, spatial))
    return f"The output of pooling {size} with a {window} window would be {out}: Output size is too small."


def _pooled(x, kernel_size, stride, padding, dilation, ceil_mode) -> Tensor:
    spatial = [
        output_size(x.shape[2 + i], kernel_size[i], stride[i], padding[i], dilation[i], ceil_mode) for i in range(2)
    ]
    for size in spatial:
        torch._check(size >= 1, lambda: _nowhere(x, kernel_size, spatial))
    return x.new_empty([*x.shape[:2], *spatial]).to(memory_format=_format(x))


def _sized(x: Tensor, size, format: torch.memory_format) -> Tensor:
    return x.new_empty([*x.shape[:2], *size]).to(memory_format=format)


@torch.library.register_fake("fastconv::max_pool2d")
def _(x, kernel_size, stride, padding, dilation, ceil_mode):
    return _pooled(x, kernel_size, stride, padding, dilation, ceil_mode)


@torch.library.register_fake("fastconv::max_pool2d_indexed")
def _(x, kernel_size, stride, padding, dilation, ceil_mode, positions):
    y = _pooled(x, kernel_size, stride, padding, dilation, ceil_mode)
    byte = not positions and kernel_size[0] * kernel_size[1] <= MAX_BYTE_TAPS
    return y, torch.empty_like(y, dtype=torch.uint8 if byte else torch.int64)


@torch.library.register_fake("fastconv::max_pool2d_dgrad")
def _(dy, index, input_size, kernel_size, stride, padding, dilation, ceil_mode, channels_last):
    return _sized(dy, input_size, _layout(channels_last))


@torch.library.register_fake("fastconv::adaptive_max_pool2d")
def _(x, output_size):
    return _sized(x, output_size, _format(x))


@torch.library.register_fake("fastconv::adaptive_max_pool2d_indexed")
def _(x, output_size):
    y = _sized(x, output_size, _format(x))
    return y, torch.empty_like(y, dtype=torch.int64)


@torch.library.register_fake("fastconv::adaptive_max_pool2d_dgrad")
def _(dy, index, input_size, channels_last):
    return _sized(dy, input_size, _layout(channels_last))


@torch.library.register_fake("fastconv::max_unpool2d")
def _(x, index, output_size):
    return _sized(x, output_size, _format(x))


@torch.library.register_fake("fastconv::max_unpool2d_dgrad")
def _(dy, index, channels_last):
    return _sized(dy, index.shape[2:], _layout(channels_last))


@torch.library.register_fake("fastconv::avg_pool2d")
def _(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override):
    return _pooled(x, kernel_size, stride, padding, (1, 1), ceil_mode)


@torch.library.register_fake("fastconv::avg_pool2d_dgrad")
def _(dy, input_size, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, channels_last):
    return _sized(dy, input_size, _layout(channels_last))


@torch.library.register_fake("fastconv::adaptive_avg_pool2d")
def _(x, output_size):
    return _sized(x, output_size, _format(x))


@torch.library.register_fake("fastconv::adaptive_avg_pool2d_dgrad")
def _(dy, input_size, channels_last):
    return _sized(dy, input_size, _layout(channels_last))
