"""A problem as the call a user makes, forwards, or as the call autograd makes, backwards: torch's, in either layout, to
time against, and our own. The same functional call serves both sides of a comparison: ``namespace`` is
``torch.nn.functional`` or ``fastconv.functional``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

import fastconv.functional
from fastconv.kernels import aten_norm, aten_pool
from fastconv.problem import Problem
from fastconv.testing import inputs

Tensors = dict[str, Tensor]
Call = Callable[[], object]
aten = torch.ops.aten
EPS, MOMENTUM = aten_norm.EPS, 0.1


def fprop(problem: Problem, tensors: Tensors, namespace: ModuleType) -> Call | None:
    """The forward call of a problem without fused parts, or None when there is no single function for it."""
    if problem.pass_ != "fprop" or not _plain(problem):
        return None
    x = tensors["x"]
    window, stride, padding, dilation = _geometry(problem)
    size = [problem.h.out, problem.w.out]
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
        case "batchnorm2d":
            function, training, (mean, variance) = namespace.batch_norm, problem.training, _running(problem, tensors)
            weight, bias = tensors.get("w"), tensors.get("bias")
            return lambda: function(x, mean, variance, weight, bias, training, MOMENTUM, EPS)
        case "lrn2d":
            return partial(namespace.local_response_norm, x, problem.size, *aten_norm.RESPONSE)
    return None


def _running(problem: Problem, tensors: Tensors) -> tuple[Tensor, Tensor]:
    """Running statistics: the operands', or some that training may move."""
    if not problem.training:
        return tensors["mean"], tensors["variance"]
    return torch.zeros_like(tensors["stats"][0]), torch.ones_like(tensors["stats"][1])


def transposed(problem: Problem, tensors: Tensors, namespace: ModuleType) -> Call | None:
    """``conv_transpose2d`` with the problem, an input gradient, as its forward pass; None as for :func:`fprop`."""
    if not problem.is_conv or problem.pass_ != "dgrad" or not _plain(problem):
        return None
    x, weight, bias, groups = tensors["y"], tensors["w"], tensors.get("bias"), problem.groups
    _, stride, padding, dilation = _geometry(problem)
    function, extra = namespace.conv_transpose2d, _output_padding(problem)
    return lambda: function(x, weight, bias, stride, padding, extra, groups, dilation)


def backward(problem: Problem, tensors: Tensors, of_transposed: bool = False) -> Call | None:
    """torch's own gradient: ``aten::convolution_backward`` asked for the one gradient, or a pool's backward operator, a
    max pool's with the int64 positions torch would have kept.

    of_transposed: the problem is a gradient of ``conv_transpose2d``: its input's (fprop) or its weight's (wgrad).
    """
    if not _plain(problem) or problem.bias or problem.pass_ == ("dgrad" if of_transposed else "fprop"):
        return None
    if problem.is_conv:
        return _conv_backward(problem, tensors, of_transposed)
    if problem.op == "lrn2d":
        return _response_backward(problem, tensors)
    if problem.is_norm:
        return _norm_backward(problem, tensors)
    window, stride, padding, dilation = _geometry(problem)
    dy, x, size = tensors["y"], _blank(problem, "x", tensors["y"]), [problem.h.out, problem.w.out]
    match problem.op:
        case "maxpool2d":
            function, ceil = aten.max_pool2d_with_indices_backward.default, problem.ceil_mode
            index = aten_pool.positions(problem, tensors["index"])
            return lambda: function(dy, x, window, stride, padding, dilation, ceil, index)
        case "avgpool2d":
            function, ceil, counted = aten.avg_pool2d_backward.default, problem.ceil_mode, problem.count_include_pad
            divisor = problem.divisor_override or None
            return lambda: function(dy, x, window, stride, padding, ceil, counted, divisor)
        case "adaptiveavg2d":  # a mean over everything has a gradient of its own, which is spread by expand
            if size == [1, 1]:
                pixels = problem.h.size * problem.w.size
                return lambda: dy.expand_as(x) / pixels
            return partial(aten._adaptive_avg_pool2d_backward.default, dy, x)
        case "adaptivemax2d":
            return partial(aten.adaptive_max_pool2d_backward.default, dy, x, tensors["index"])
    return None


def _conv_backward(problem: Problem, tensors: Tensors, of_transposed: bool) -> Call:
    wgrad = problem.pass_ == "wgrad"
    like = next(iter(tensors.values()))
    # Only the shape of the operand that is not asked for counts.
    x, dy, weight = (tensors[name] if name in tensors else _blank(problem, name, like) for name in ("x", "y", "w"))
    if of_transposed:
        x, dy = dy, x
    _, stride, padding, dilation = _geometry(problem)
    extra = _output_padding(problem) if of_transposed else [0, 0]
    function, groups, mask = aten.convolution_backward.default, problem.groups, [not wgrad, wgrad, False]
    return lambda: function(dy, x, weight, None, stride, padding, dilation, of_transposed, extra, groups, mask)


def _norm_backward(problem: Problem, tensors: Tensors) -> Call:
    dy, x, weight, mean, variance = (tensors.get(name) for name in ("y", "x", "w", "mean", "variance"))
    function, mask = aten.native_batch_norm_backward.default, [problem.pass_ == "dgrad", True, True]
    inverse, training = (variance + EPS).rsqrt(), problem.training
    call = partial(function, dy, x, weight, mean, variance, mean, inverse, training, EPS, mask)
    return call if problem.pass_ == "dgrad" else lambda: torch.stack(call()[1:])


def _response_backward(problem: Problem, tensors: Tensors) -> Call:
    """torch has no operator for it: what autograd runs, after the forward pass has kept what it keeps."""
    with torch.enable_grad():
        x = tensors["x"].detach().requires_grad_()
        y = torch.nn.functional.local_response_norm(x, problem.size, *aten_norm.RESPONSE)
    return lambda: torch.autograd.grad(y, x, tensors["y"], retain_graph=True)[0]


def own_backward(problem: Problem, tensors: Tensors) -> Call | None:
    """The call our autograd makes for the problem, and for ``conv_transpose2d``, whose gradients are other passes of
    the same convolution; None as for :func:`backward`.
    """
    if not _plain(problem) or problem.bias:
        return None
    op, nhwc = torch.ops.fastconv, problem.layout == "nhwc"
    window, stride, padding, dilation = _geometry(problem)
    size = [problem.h.size, problem.w.size]
    if problem.is_conv:
        x, dy, w, groups = tensors.get("x"), tensors.get("y"), tensors.get("w"), problem.groups
        sides = [problem.h.pad_lo, problem.h.pad_hi, problem.w.pad_lo, problem.w.pad_hi]
        geometry = (stride, sides, dilation, groups, nhwc)
        match problem.pass_:
            case "fprop":
                return partial(op.conv2d.default, x, w, None, *geometry)
            case "dgrad":
                return partial(op.conv2d_dgrad.default, dy, w, None, size, *geometry)
            case "wgrad":
                return partial(op.conv2d_wgrad.default, dy, x, window, *geometry)
    if problem.op == "lrn2d":
        function = op.local_response_norm_dgrad.default
        return partial(function, tensors["y"], tensors["x"], problem.size, *aten_norm.RESPONSE)
    if problem.is_norm:
        given = (tensors["mean"], tensors["variance"], problem.training, EPS)
        if problem.pass_ == "dgrad":
            return partial(op.batch_norm_dgrad.default, tensors["y"], tensors["x"], tensors.get("w"), *given)
        return partial(op.batch_norm_wgrad.default, tensors["y"], tensors["x"], *given)
    if problem.pass_ != "dgrad":
        return None
    dy = tensors["y"]
    ceil, counted, divisor = problem.ceil_mode, problem.count_include_pad, problem.divisor_override or None
    match problem.op:
        case "maxpool2d":
            index, function = tensors["index"], op.max_pool2d_dgrad.default
            return partial(function, dy, index, size, window, stride, padding, dilation, ceil, nhwc)
        case "avgpool2d":
            function = op.avg_pool2d_dgrad.default
            return partial(function, dy, size, window, stride, padding, ceil, counted, divisor, nhwc)
        case "adaptiveavg2d":
            return partial(op.adaptive_avg_pool2d_dgrad.default, dy, size, nhwc)
        case "adaptivemax2d":
            return partial(op.adaptive_max_pool2d_dgrad.default, dy, tensors["index"], size, nhwc)
    return None


def torch_call(problem: Problem, tensors: Tensors) -> Call | None:
    """What a user of torch would call for this problem, or None when that takes more than one call."""
    return fprop(problem, tensors, torch.nn.functional) or backward(problem, tensors)


def training_calls(problem: Problem, tensors: Tensors, of_transposed: bool = False) -> tuple[Call | None, Call | None]:
    """Our call and torch's for one step of training a layer: its forward call, or one gradient's.

    of_transposed: the layer is a ``conv_transpose2d``; its forward pass is a dgrad, its input's gradient an fprop.
    """
    forward = transposed if of_transposed else fprop
    if problem.pass_ == ("dgrad" if of_transposed else "fprop"):
        sides = fastconv.functional, torch.nn.functional
        return tuple(forward(problem, tensors, namespace) for namespace in sides)
    return own_backward(problem, tensors), backward(problem, tensors, of_transposed)


def _plain(problem: Problem) -> bool:
    """Whether there is a function for it: nothing fused but a bias, and as much padding on either side."""
    h, w = problem.h, problem.w
    fused = problem.residual or problem.activation != "none" or problem.in_channels or problem.out_channels
    return not fused and (h.pad_lo, w.pad_lo) == (h.pad_hi, w.pad_hi)


def _geometry(problem: Problem) -> tuple[list[int], list[int], list[int], list[int]]:
    """Window, stride, padding and dilation of a problem with symmetric padding."""
    h, w = problem.h, problem.w
    return [h.window, w.window], [h.stride, w.stride], [h.pad_lo, w.pad_lo], [h.dilation, w.dilation]


def _output_padding(problem: Problem) -> list[int]:
    """What ``conv_transpose2d`` needs beside the geometry to arrive at the problem's size."""
    return [
        a.size - ((a.out - 1) * a.stride - 2 * a.pad_lo + a.dilation * (a.window - 1) + 1)
        for a in (problem.h, problem.w)
    ]


def _blank(problem: Problem, name: str, like: Tensor) -> Tensor:
    """An operand of which only shape, dtype and layout count."""
    shape = inputs.shapes(problem)[name]
    return like.new_empty(shape).contiguous(memory_format=inputs.memory_format(problem))
