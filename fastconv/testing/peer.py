"""A problem as the call a user of torch would make, to time against: plain torch functions, in either layout.

``namespace`` is ``torch.nn.functional`` or ``fastconv.functional``: the same call serves both sides of a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from fastconv.kernels import aten_pool
from fastconv.problem import Problem

Tensors = dict[str, Tensor]
Call = Callable[[], object]


def fprop(problem: Problem, tensors: Tensors, namespace: ModuleType) -> Call | None:
    """The forward call of a problem without fused parts, or None when there is no single function for it."""
    if problem.pass_ != "fprop" or problem.residual or problem.activation != "none" or problem.out_channels:
        return None
    h, w = problem.h, problem.w
    if (h.pad_lo, w.pad_lo) != (h.pad_hi, w.pad_hi):
        return None
    x = tensors["x"]
    window, stride = (h.window, w.window), (h.stride, w.stride)
    padding, dilation, size = (h.pad_lo, w.pad_lo), (h.dilation, w.dilation), (h.out, w.out)
    match problem.op:
        case "conv2d":
            function = namespace.conv2d
            weight, bias, groups = tensors["w"], tensors.get("bias"), problem.groups
            return lambda: function(x, weight, bias, stride, padding, dilation, groups)
        case "maxpool2d":
            function, ceil, index = namespace.max_pool2d, problem.ceil_mode, problem.index != "none"
            return lambda: function(x, window, stride, padding, dilation, ceil, index)
        case "avgpool2d":
            function, ceil, counted = namespace.avg_pool2d, problem.ceil_mode, problem.count_include_pad
            divisor = problem.divisor_override or None
            return lambda: function(x, window, stride, padding, ceil, counted, divisor)
        case "adaptiveavg2d":
            function = namespace.adaptive_avg_pool2d
            return lambda: function(x, size)
        case "adaptivemax2d":
            function, index = namespace.adaptive_max_pool2d, problem.index != "none"
            return lambda: function(x, size, index)
    return None


def backward(problem: Problem, tensors: Tensors) -> Call | None:
    """torch's own gradient: ``aten::convolution_backward`` asked for the one gradient, or a max pool's from the int64
    positions torch would have kept.
    """
    h, w = problem.h, problem.w
    if problem.op == "maxpool2d" and problem.pass_ == "dgrad":
        positions = aten_pool.positions(problem, tensors["index"])
        return partial(aten_pool.max_dgrad, problem.replace(index="i64"), y=tensors["y"], index=positions)
    symmetric = (h.pad_lo, w.pad_lo) == (h.pad_hi, w.pad_hi)
    if not problem.is_conv or problem.pass_ == "fprop" or not symmetric:
        return None
    if problem.bias or problem.residual or problem.activation != "none" or problem.out_channels:
        return None
    dgrad = problem.pass_ == "dgrad"
    dy = tensors["y"]
    # Only the shape of the operand that is not asked for counts.
    x = tensors["x"] if not dgrad else dy.new_empty(problem.n, problem.c, h.size, w.size)
    weight = tensors["w"] if dgrad else dy.new_empty(problem.k, problem.c // problem.groups, h.window, w.window)
    if problem.layout == "nhwc":
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    function, groups, mask = torch.ops.aten.convolution_backward.default, problem.groups, [dgrad, not dgrad, False]
    stride, padding, dilation = [h.stride, w.stride], [h.pad_lo, w.pad_lo], [h.dilation, w.dilation]
    return lambda: function(dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask)


def torch_call(problem: Problem, tensors: Tensors) -> Call | None:
    """What a user of torch would call for this problem, or None when that takes more than one call."""
    return fprop(problem, tensors, torch.nn.functional) or backward(problem, tensors)
