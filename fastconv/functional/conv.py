"""Convolutions with torch.nn.functional's names, argument order, defaults, results and errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastconv import ops as ops  # registers the operators
from fastconv._native import C
from fastconv.functional.arguments import Ints, as_int, as_tuple, batched, check_tensors, sides, transposed_axis

_conv2d = torch.ops.fastconv.conv2d.default
_conv2d_act = torch.ops.fastconv.conv2d_act.default
_conv2d_dgrad = torch.ops.fastconv.conv2d_dgrad.default
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling

# The extension's entry points take the ordinary call without a schema to parse, and answer NotImplemented to others.
_quick_conv2d = C.conv2d
_quick_conv_transpose2d = C.conv_transpose2d

conv3d = torch.nn.functional.conv3d
conv_transpose3d = torch.nn.functional.conv_transpose3d


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups: int) -> Tensor:
    """The operator on arguments in its own form, the short way where there is one."""
    if padding[::2] == padding[1::2] and not _is_dynamo_compiling():
        y = _quick_conv2d(x, weight, bias, stride, padding[::2], dilation, groups)
        if y is not NotImplemented:
            return y
    return _conv2d(x, weight, bias, stride, padding, dilation, groups)


def _deconvolve(x: Tensor, weight: Tensor, bias: Tensor | None, size, stride, padding, dilation, groups: int) -> Tensor:
    """The input gradient as an operator of its own."""
    if not _is_dynamo_compiling() and torch.jit.is_tracing():
        raise NotImplementedError(
            "torch.jit.trace cannot record a transposed convolution, whose size is an argument; use torch.export."
        )
    return _conv2d_dgrad(x, weight, bias, size, stride, padding, dilation, groups)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution, ``torch.nn.functional.conv1d``'s signature and result: a 2-D one of height 1.

    input: (N, C, W) or (C, W); weight: (K, C/groups, S); bias: (K). Returns (N, K, Q) or (K, Q).
    Raises what torch raises (RuntimeError for shapes, dtypes and geometry), before anything is allocated.
    """
    if has_torch_function_variadic(input, weight):
        return handle_torch_function(conv1d, (input, weight), input, weight, bias, stride, padding, dilation, groups)
    check_tensors(input, weight, bias, 1, "conv1d")
    if input.layout is not torch.strided:
        return torch.nn.functional.conv1d(input, weight, bias, stride, padding, dilation, groups)
    x, isbatched = batched(input, 1, "conv1d")
    stride, dilation = as_tuple(stride, 1, "stride"), as_tuple(dilation, 1, "dilation")
    padding = sides(padding, weight.shape[2:], stride, dilation)
    # Dense first: a permuted sequence must not pass for a channels_last image.
    x, filter = x.contiguous().unsqueeze(2), weight.unsqueeze(2)
    stride, padding, dilation = (1, *stride), (0, 0, *padding), (1, *dilation)
    y = _convolve(x, filter, bias, stride, padding, dilation, as_int(groups, "groups")).squeeze(2)
    return y if isbatched else y.squeeze(0)


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
    if not _is_dynamo_compiling():
        y = _quick_conv2d(input, weight, bias, stride, padding, dilation, groups)
        if y is not NotImplemented:
            return y
    if has_torch_function_variadic(input, weight):
        return handle_torch_function(conv2d, (input, weight), input, weight, bias, stride, padding, dilation, groups)
    check_tensors(input, weight, bias, 2, "conv2d")
    x, isbatched = batched(input, 2, "conv2d")
    stride, dilation = as_tuple(stride, 2, "stride"), as_tuple(dilation, 2, "dilation")
    padding = sides(padding, weight.shape[2:], stride, dilation)
    y = _convolve(x, weight, bias, stride, padding, dilation, as_int(groups, "groups"))
    return y if isbatched else y.squeeze(0)


def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    activation: str = "none",
    alpha: float = 0.0,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(conv2d(...) + residual)`` in one pass over the output.

    activation: none, relu, relu6, leaky_relu (slope ``alpha`` below zero), silu, hardswish, hardsigmoid, sigmoid,
        gelu (erf) or gelutanh.
    residual: the shape of the result. padding: as in :func:`conv2d`, or four ints (top, bottom, left, right).
    Raises like :func:`conv2d`, and RuntimeError for an unknown activation or a residual of another shape.
    """
    if has_torch_function_variadic(input, weight):
        arguments = (input, weight, bias, stride, padding, dilation, groups, activation, alpha, residual)
        return handle_torch_function(conv2d_act, (input, weight), *arguments)
    check_tensors(input, weight, bias, 2, "conv2d_act")
    x, isbatched = batched(input, 2, "conv2d_act")
    stride, dilation = as_tuple(stride, 2, "stride"), as_tuple(dilation, 2, "dilation")
    if not isinstance(padding, int | str | torch.SymInt) and len(padding) == 4:
        padding = as_tuple(padding, 4, "padding")
    else:
        padding = sides(padding, weight.shape[2:], stride, dilation)
    if residual is not None and not isbatched:
        residual = residual.unsqueeze(0)
    groups = as_int(groups, "groups")
    y = _conv2d_act(x, weight, bias, residual, stride, padding, dilation, groups, activation, float(alpha))
    return y if isbatched else y.squeeze(0)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """1-D transposed convolution, ``torch.nn.functional.conv_transpose1d``'s signature and result.

    input: (N, K, Q) or (K, Q); weight: (K, C/groups, S); bias: (C). Returns (N, C, W) or (C, W).
    Raises what torch raises (RuntimeError for shapes, dtypes and geometry), before anything is allocated.
    """
    if has_torch_function_variadic(input, weight):
        arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return handle_torch_function(conv_transpose1d, (input, weight), *arguments)
    check_tensors(input, weight, bias, 1, "conv_transpose1d")
    if input.layout is not torch.strided:
        arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return torch.nn.functional.conv_transpose1d(*arguments)
    x, isbatched = batched(input, 1, "conv_transpose1d")
    (stride,), (padding,) = as_tuple(stride, 1, "stride"), as_tuple(padding, 1, "padding")
    (extra,), (dilation,) = as_tuple(output_padding, 1, "output_padding"), as_tuple(dilation, 1, "dilation")
    size, around = transposed_axis(x.shape[2], weight.shape[2], stride, padding, extra, dilation)
    x, filter, groups = x.contiguous().unsqueeze(2), weight.unsqueeze(2), as_int(groups, "groups")
    y = _deconvolve(x, filter, bias, (1, size), (1, stride), (0, 0, *around), (1, dilation), groups).squeeze(2)
    return y if isbatched else y.squeeze(0)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
) -> Tensor:
    """2-D transposed convolution, ``torch.nn.functional.conv_transpose2d``'s signature and result.

    It is the input gradient of a convolution, and runs on the kernels of that pass.
    input: (N, K, P, Q) or (K, P, Q); weight: (K, C/groups, R, S); bias: (C). Returns (N, C, H, W) or (C, H, W).
    Raises what torch raises (RuntimeError for shapes, dtypes and geometry), before anything is allocated.
    """
    if not _is_dynamo_compiling():
        y = _quick_conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
        if y is not NotImplemented:
            return y
    if has_torch_function_variadic(input, weight):
        arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return handle_torch_function(conv_transpose2d, (input, weight), *arguments)
    check_tensors(input, weight, bias, 2, "conv_transpose2d")
    x, isbatched = batched(input, 2, "conv_transpose2d")
    stride, padding = as_tuple(stride, 2, "stride"), as_tuple(padding, 2, "padding")
    extra, dilation = as_tuple(output_padding, 2, "output_padding"), as_tuple(dilation, 2, "dilation")
    (h, h_sides), (w, w_sides) = (
        transposed_axis(x.shape[2 + i], weight.shape[2 + i], stride[i], padding[i], extra[i], dilation[i])
        for i in range(2)
    )
    groups = as_int(groups, "groups")
    y = _deconvolve(x, weight, bias, (h, w), stride, (*h_sides, *w_sides), dilation, groups)
    return y if isbatched else y.squeeze(0)
