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
VECTORS = ("running_mean", "running_var", "norm_weight", "norm_bias")  # of one value a channel
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
    second_running_mean: Tensor | None = None,
    second_running_var: Tensor | None = None,
    second_norm_weight: Tensor | None = None,
    second_norm_bias: Tensor | None = None,
    second_activation: str | None = None,
    second_alpha: float = 0.0,
) -> Tensor:
    """conv2d, batch norm in training, residual and activation: act(batch_norm(conv2d(input, weight)) + residual).

    input: (N, C, H, W); weight: (K, C/groups, R, S); norm_weight, norm_bias, and running_mean and running_var, which
    ``momentum`` moves: (K); residual: the shape of the convolution's result, (N, K, P, Q).
    activation: none, relu, relu6, leaky_relu (slope ``alpha`` below zero), silu, hardswish, hardsigmoid, sigmoid,
        gelu (erf) or gelutanh.
    second: (L, K/second_groups, T, U), filters of a convolution behind all that; the result is then its, with L
    channels. second_activation: one of the same, behind a training norm of the second convolution's result, whose
    parameters and running statistics are (L); it is there that a residual is added, (N, L, ...).

    On a GPU, in float32, float16 and bfloat16, a convolution takes mean and variance of its result as it stores it,
    and the second normalises as it loads, rounding as a stored norm would: each saves a pass over memory.
    Backward runs kernels too; a second derivative runs the functions named, one after the other, again. Elsewhere,
    and beside tangents of forward mode, these are called from the start.
    Raises ValueError for an unknown activation, for a residual or a norm that has no place and for one value a channel,
    and RuntimeError for shapes and dtypes that do not fit.
    """
    tensors = (input, weight, running_mean, running_var, norm_weight, norm_bias, residual, second)
    behind = (second_running_mean, second_running_var, second_norm_weight, second_norm_bias)
    if has_torch_function((*tensors, *behind)):
        return handle_torch_function(
            conv2d_batch_norm,
            (*tensors, *behind),
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
            second_running_mean=second_running_mean,
            second_running_var=second_running_var,
            second_norm_weight=second_norm_weight,
            second_norm_bias=second_norm_bias,
            second_activation=second_activation,
            second_alpha=second_alpha,
        )
    for name, given in (("activation", activation), ("second_activation", second_activation or "none")):
        if given not in ACTIVATIONS:
            raise ValueError(f"{name} is one of {', '.join(ACTIVATIONS)}, not {given!r}.")
    last = second_activation is not None
    if last and second is None:
        raise ValueError(f"second_activation is {second_activation!r}, but there is no second convolution.")
    if residual is not None and second is not None and not last:
        raise ValueError("residual is not added before a second convolution: give one of them, or second_activation.")
    first_affine, last_affine = (norm_weight, norm_bias), (second_norm_weight, second_norm_bias)
    # Activation and its slope: of the first norm, and of the last.
    tails = (activation, float(alpha)), (second_activation, float(second_alpha))
    around = (stride, padding, dilation, groups), (second_stride, second_padding, second_dilation, second_groups)
    if input.device.type in DEVICES and _HAS_TRITON and fused.takes(input) and not _any_tangent((*tensors, *behind)):
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            residual, second = (None if t is None else t.to(dtype) for t in (residual, second))
        vectors = dict(zip(VECTORS, tensors[2:6], strict=True))
        fused.check(input, weight, {"residual": residual, "second": second}, vectors)
        first = fused.conv2d_moments(input, weight, _geometry(weight, *around[0]))
        if second is None:
            y = fused.norm_apply(*first, *first_affine, residual, float(eps), *tails[0])
        else:
            given = {f"second_{name}": t for name, t in zip(VECTORS, behind, strict=True)}
            fused.check_channels(second.shape[0], input, given)
            geometry = _geometry(second, *around[1])
            then = fused.norm_conv2d(*first, *first_affine, second, geometry, float(eps), *tails[0], last)
            y = fused.norm_apply(*then, *last_affine, residual, float(eps), *tails[1]) if last else then[0]
            if last:
                _move(second_running_mean, second_running_var, *then, momentum)
        _move(running_mean, running_var, *first, momentum)
        return y
    z = conv2d(input, weight, None, *around[0])
    y = batch_norm(z, running_mean, running_var, *first_affine, True, momentum, eps)
    if second is not None:
        y = conv2d(fused.activated(y, *tails[0]), second, None, *around[1])
        if not last:
            return y
        y = batch_norm(y, second_running_mean, second_running_var, *last_affine, True, momentum, eps)
    return fused.activated(y if residual is None else y + residual, *tails[last])


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


def _move(mean: Tensor | None, variance: Tensor | None, z: Tensor, stats: Tensor, momentum: float) -> None:
    """Running statistics towards those of z, the variance without bias."""
    count = z.shape[0] * z.shape[2] * z.shape[3]
    with torch.no_grad():
        if mean is not None:
            mean.lerp_(stats[0].to(mean.dtype), momentum)
        if variance is not None:
            variance.lerp_((stats[1] * (count / (count - 1))).to(variance.dtype), momentum)
