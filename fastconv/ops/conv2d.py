"""fastconv::conv2d, conv2d_act, conv2d_dgrad, conv2d_wgrad: shapes for tracing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastconv import dispatch as dispatch  # installs the planner the operators ask


def output_size(size: int, window: int, stride: int, padding: int, dilation: int) -> int:
    """P or Q of a convolution; ``padding`` is the sum of both sides."""
    return (size + padding - dilation * (window - 1) - 1) // stride + 1


def _suggests(t: Tensor) -> bool:
    return suggest_memory_format(t) == torch.channels_last


def _suggests_when_dense(t: Tensor) -> bool:
    if t.is_contiguous(memory_format=torch.channels_last):
        return _suggests(t)
    return any(size != 1 for size in t.shape[1:])


def gives_channels_last(x: Tensor, weight: Tensor) -> bool:
    """torch's rule for the layout of a result, as ``result_layout`` in csrc/bindings/conv_problem.cpp states it."""
    if not _suggests(x) and not _suggests(weight):
        return False
    return _suggests_when_dense(x) or _suggests_when_dense(weight)


def empty(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    return like.new_empty(shape).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def fprop_shape(x, weight, stride, padding, dilation, groups) -> list[int]:
    """The result's shape; a RuntimeError, as csrc/bindings/conv_problem.cpp has it, where the filter does not fit."""
    taken = weight.shape[1] * groups
    torch._check(
        taken == x.shape[1],
        lambda: (
            f"weight of shape {list(weight.shape)} with groups={groups} takes {taken} input channels, but input of "
            f"shape {list(x.shape)} has {x.shape[1]}."
        ),
    )
    return [x.shape[0], weight.shape[0], *(_moved(x, weight, stride, padding, dilation, i) for i in range(2))]


def _moved(x, weight, stride, padding, dilation, i: int) -> int:
    """P (i = 0) or Q (i = 1)."""
    window, around = weight.shape[2 + i], padding[2 * i] + padding[2 * i + 1]
    size = output_size(x.shape[2 + i], window, stride[i], around, dilation[i])
    torch._check(
        size >= 1,
        lambda: (
            f"The kernel reaches over {dilation[i] * (window - 1) + 1} along {'HW'[i]} (size {window}, dilation "
            f"{dilation[i]}), but the padded input has only {x.shape[2 + i] + around}."
        ),
    )
    return size


@torch.library.register_fake("fastconv::conv2d")
def _(x, weight, bias, stride, padding, dilation, groups, channels_last=None):
    if channels_last is None:
        channels_last = gives_channels_last(x, weight)
    return empty(x, fprop_shape(x, weight, stride, padding, dilation, groups), channels_last)


@torch.library.register_fake("fastconv::conv2d_act")
def _(x, weight, bias, residual, stride, padding, dilation, groups, activation, alpha):
    shape = fprop_shape(x, weight, stride, padding, dilation, groups)
    return empty(x, shape, gives_channels_last(x, weight))


@torch.library.register_fake("fastconv::conv2d_dgrad")
def _(dy, weight, bias, input_size, stride, padding, dilation, groups, channels_last=None):
    if channels_last is None:
        channels_last = gives_channels_last(dy, weight)
    return empty(dy, [dy.shape[0], weight.shape[1] * groups, *input_size], channels_last)


@torch.library.register_fake("fastconv::conv2d_wgrad")
def _(dy, x, kernel_size, stride, padding, dilation, groups, channels_last):
    return empty(dy, [dy.shape[1], x.shape[1] // groups, *kernel_size], channels_last)
