"""PyTorch's own pooling operators as ordinary rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cpu", "cuda")
aten = torch.ops.aten


def rows() -> list[Kernel]:
    """One row per pass of every pool."""
    return [
        Kernel("maxpool2d/fprop_aten", "maxpool2d", "fprop", DEVICES, _refuses_max, max_fprop),
        Kernel("maxpool2d/dgrad_aten", "maxpool2d", "dgrad", DEVICES, _refuses_max, max_dgrad),
        Kernel("adaptivemax2d/fprop_aten", "adaptivemax2d", "fprop", DEVICES, _refuses_max, adaptive_max_fprop),
        Kernel("adaptivemax2d/dgrad_aten", "adaptivemax2d", "dgrad", DEVICES, _refuses_max, adaptive_max_dgrad),
        Kernel("avgpool2d/fprop_aten", "avgpool2d", "fprop", DEVICES, _refuses, average_fprop),
        Kernel("avgpool2d/dgrad_aten", "avgpool2d", "dgrad", DEVICES, _refuses, average_dgrad),
        Kernel("adaptiveavg2d/fprop_aten", "adaptiveavg2d", "fprop", DEVICES, _refuses, adaptive_average_fprop),
        Kernel("adaptiveavg2d/dgrad_aten", "adaptiveavg2d", "dgrad", DEVICES, _refuses, adaptive_average_dgrad),
        Kernel("unpool2d/fprop_aten", "unpool2d", "fprop", DEVICES, _refuses, unpool_fprop),
        Kernel("unpool2d/dgrad_aten", "unpool2d", "dgrad", DEVICES, _refuses, unpool_dgrad),
    ]


def _refuses(problem: Problem) -> str | None:
    h, w = problem.h, problem.w
    if problem.in_channels or problem.out_channels:
        return "PyTorch's operator is asked for whole tensors, not for a channel slice of a larger buffer."
    if (h.pad_lo, w.pad_lo) != (h.pad_hi, w.pad_hi):
        return f"Its padding is symmetric, but the problem's is {h.pad_lo}:{h.pad_hi} x {w.pad_lo}:{w.pad_hi}."
    for axis in (h, w):
        reach = axis.dilation * (axis.window - 1) + 1
        if axis.pad_lo > reach // 2:
            return f"PyTorch allows a padding of half the window, {reach // 2}, but the problem's is {axis.pad_lo}."
    return None


def _refuses_max(problem: Problem) -> str | None:
    if problem.pass_ == "dgrad" and problem.index == "none":
        return "The gradient of a max pool needs an index."
    return _refuses(problem)


def _window(problem: Problem) -> tuple[list[int], list[int], list[int], list[int]]:
    h, w = problem.h, problem.w
    return [h.window, w.window], [h.stride, w.stride], [h.pad_lo, w.pad_lo], [h.dilation, w.dilation]


def _like_x(problem: Problem, dy: Tensor) -> Tensor:
    """What PyTorch's gradients read of the input: its size, dtype and layout."""
    format = torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format
    return torch.empty(
        problem.n, problem.c, problem.h.size, problem.w.size, dtype=dy.dtype, device=dy.device, memory_format=format
    )


def _starts(problem: Problem, index: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of tap (0, 0) of every output position."""
    rows = torch.arange(problem.h.out, device=index.device)[:, None] * problem.h.stride - problem.h.pad_lo
    columns = torch.arange(problem.w.out, device=index.device) * problem.w.stride - problem.w.pad_lo
    return rows, columns


def _taps(problem: Problem, positions: Tensor) -> Tensor:
    """Positions in the plane -> tap numbers in the window."""
    rows, columns = _starts(problem, positions)
    r = (positions // problem.w.size - rows) // problem.h.dilation
    s = (positions % problem.w.size - columns) // problem.w.dilation
    return r * problem.w.window + s


def positions(problem: Problem, index: Tensor) -> Tensor:
    """An index of either kind as int64 positions in the plane."""
    if problem.index == "i64":
        return index
    rows, columns = _starts(problem, index)
    taps = index.long()
    r, s = taps // problem.w.window, taps % problem.w.window
    positions = (rows + r * problem.h.dilation) * problem.w.size + columns + s * problem.w.dilation
    return positions.contiguous(
        memory_format=torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format
    )


def max_fprop(problem: Problem, *, x: Tensor, index: Tensor | None = None) -> Tensor:
    """``aten::max_pool2d_with_indices``; writes ``index`` in the problem's kind."""
    if index is None:
        return aten.max_pool2d(x, *_window(problem), problem.ceil_mode)
    y, positions = aten.max_pool2d_with_indices(x, *_window(problem), problem.ceil_mode)
    index.copy_(positions if problem.index == "i64" else _taps(problem, positions))
    return y


def max_dgrad(problem: Problem, *, y: Tensor, index: Tensor) -> Tensor:
    """``aten::max_pool2d_with_indices_backward``."""
    return aten.max_pool2d_with_indices_backward(
        y, _like_x(problem, y), *_window(problem), problem.ceil_mode, positions(problem, index)
    )


def adaptive_max_fprop(problem: Problem, *, x: Tensor, index: Tensor | None = None) -> Tensor:
    """``aten::adaptive_max_pool2d``."""
    y, positions = aten.adaptive_max_pool2d(x, [problem.h.out, problem.w.out])
    if index is not None:
        index.copy_(positions)
    return y


def adaptive_max_dgrad(problem: Problem, *, y: Tensor, index: Tensor) -> Tensor:
    """``aten::adaptive_max_pool2d_backward``."""
    return aten.adaptive_max_pool2d_backward(y, _like_x(problem, y), index)


def _average(problem: Problem) -> tuple:
    window, stride, padding, _ = _window(problem)
    override = problem.divisor_override or None
    return window, stride, padding, problem.ceil_mode, problem.count_include_pad, override


def average_fprop(problem: Problem, *, x: Tensor) -> Tensor:
    """``aten::avg_pool2d``."""
    return aten.avg_pool2d(x, *_average(problem))


def average_dgrad(problem: Problem, *, y: Tensor) -> Tensor:
    """``aten::avg_pool2d_backward``."""
    return aten.avg_pool2d_backward(y, _like_x(problem, y), *_average(problem))


def adaptive_average_fprop(problem: Problem, *, x: Tensor) -> Tensor:
    """``aten::adaptive_avg_pool2d``."""
    return aten.adaptive_avg_pool2d(x, [problem.h.out, problem.w.out])


def adaptive_average_dgrad(problem: Problem, *, y: Tensor) -> Tensor:
    """``aten::_adaptive_avg_pool2d_backward``."""
    return aten._adaptive_avg_pool2d_backward(y, _like_x(problem, y))


def unpool_fprop(problem: Problem, *, x: Tensor, index: Tensor) -> Tensor:
    """``aten::max_unpool2d``."""
    return aten.max_unpool2d(x, index, [problem.h.out, problem.w.out])


def unpool_dgrad(problem: Problem, *, y: Tensor, index: Tensor) -> Tensor:
    """``aten::gather`` in each plane."""
    return (
        y.flatten(2)
        .gather(2, index.flatten(2))
        .view(index.shape)
        .contiguous(memory_format=torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format)
    )
