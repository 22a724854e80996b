"""A convolution, its training batch norm and what follows, in few passes over memory. torch has no such function;
arguments are named as its conv2d's and batch_norm's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import handle_torch_function, has_torch_function

from fastconv.functional import conv_norm_ops as fused
from fastconv.functional.arguments import Ints, as_int, as_tuple, sides
from fastconv.functional.conv import conv2d
from fastconv.functional.norm import batch_norm
from fastconv.kernels import triton as rows

ACTIVATIONS = ("none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu", "gelutanh")
DEVICES = ("cuda",)  # where the fused kernels run
_HAS_TRITON = rows.missing() is None


def conv2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    alpha: float = 0.0,
    residual: Tensor | None = None,
    second: Tensor | None = None,
    second_stride: Ints = 1,
    second_padding: Ints | str = 0,
    second_dilation: Ints = 1,
    second_groups: int = 1,
) -> Tensor:
    """conv2d, batch norm in training, residual and activation: act(batch_norm(conv2d(input, weight)) + residual).

    input: (N, C, H, W); weight: (K, C/groups, R, S); norm_weight, norm_bias, and running_mean and running_var, which
    ``momentum`` moves: (K); residual: the shape of the convolution's result, (N, K, P, Q).
    activation: none, relu, relu6, leaky_relu (slope ``alpha`` below zero), silu, hardswish, hardsigmoid, sigmoid,
        gelu (erf) or gelutanh.
    second: (L, K/second_groups, T, U), filters of a convolution behind all that, where there is no residual; the
    result is then its, with L channels.

    On a GPU, in float32, float16 and bfloat16, the first convolution takes mean and variance of its result as it
    stores it, and the second normalises as it loads, rounding as a stored norm would: each saves a pass over memory.
    Backward runs kernels too; a second derivative runs the functions named, one after the other, again. Elsewhere,
    and beside tangents of forward mode, these are called from the start.
    Raises ValueError for an unknown activation, for a residual beside ``second`` and for one value a channel, and
    RuntimeError for shapes and dtypes that do not fit.
    """
    tensors = (input, weight, running_mean, running_var, norm_weight, norm_bias, residual, second)
    if has_torch_function(tensors):
        return handle_torch_function(
            conv2d_batch_norm,
            tensors,
            *tensors[:6],
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            momentum=momentum,
            eps=eps,
            activation=activation,
            alpha=alpha,
            residual=residual,
            second=second,
            second_stride=second_stride,
            second_padding=second_padding,
            second_dilation=second_dilation,
            second_groups=second_groups,
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}.")
    if residual is not None and second is not None:
        raise ValueError("residual is not added before a second convolution: give one of them.")
    if input.device.type in DEVICES and _HAS_TRITON and fused.takes(input) and not _any_tangent(tensors):
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            residual, second = (None if t is None else t.to(dtype) for t in (residual, second))
        fused.check_channels(weight.shape[0], input, {"running_mean": running_mean, "running_var": running_var})
        geometry = _geometry(weight, stride, padding, dilation, groups)
        behind = _geometry(second, second_stride, second_padding, second_dilation, second_groups)
        given = (input, weight, norm_weight, norm_bias, residual, second)
        y, z, stats = fused.conv2d_batch_norm(*given, geometry, behind, float(eps), activation, float(alpha))
        count = z.shape[0] * z.shape[2] * z.shape[3]
        _move(running_mean, stats[0], momentum)
        _move(running_var, stats[1] * (count / (count - 1)), momentum)
        return y
    z = conv2d(input, weight, None, stride, padding, dilation, groups)
    y = batch_norm(z, running_mean, running_var, norm_weight, norm_bias, True, momentum, eps)
    y = fused.activated(y if residual is None else y + residual, activation, float(alpha))
    return (
        y if second is None else conv2d(y, second, None, second_stride, second_padding, second_dilation, second_groups)
    )


def _geometry(weight: Tensor | None, stride: Ints, padding: Ints | str, dilation: Ints, groups: int) -> list[int]:
    """A convolution as its operator takes it; nothing without one."""
    if weight is None or weight.dim() != 4:  # which the operator names
        return []
    stride, dilation = as_tuple(stride, 2, "stride"), as_tuple(dilation, 2, "dilation")
    return [*stride, *sides(padding, weight.shape[2:], stride, dilation), *dilation, as_int(groups, "groups")]


def _any_tangent(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a tensor has one of forward-mode differentiation, which the operators do not carry."""
    if torch.compiler.is_dynamo_compiling():
        return False
    return any(t is not None and unpack_dual(t).tangent is not None for t in tensors)


def _move(running: Tensor | None, batch: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.lerp_(batch.to(running.dtype), momentum)
