"""A convolution, its training batch norm and what follows, in few passes over memory. torch has no such function;
arguments are named as its conv2d's and batch_norm's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastconv.functional.arguments import Ints, as_tuple, sides
from fastconv.functional.conv import conv2d
from fastconv.functional.fused import DTYPES, kind_of
from fastconv.functional.norm import batch_norm
from fastconv.kernels import triton as rows
from fastconv.problem import Problem

ACTIVATIONS = ("none", "relu")
DEVICES = ("cuda",)  # where the fused kernels run

_dgrad = torch.ops.fastconv.conv2d_dgrad.default
_wgrad = torch.ops.fastconv.conv2d_wgrad.default
_UNIT = ((1, 1), (0, 0, 0, 0), (1, 1), 1)  # of a 1x1: stride, padding, dilation, groups


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
    residual: Tensor | None = None,
    pointwise: Tensor | None = None,
) -> Tensor:
    """conv2d, batch norm in training, residual and activation: act(batch_norm(conv2d(input, weight)) + residual).

    input: (N, C, H, W); weight: (K, C/groups, R, S); norm_weight, norm_bias, and running_mean and running_var, which
    ``momentum`` moves: (K); residual: the shape of the convolution's result, (N, K, P, Q). activation: none or relu.
    pointwise: (L, K, 1, 1), filters of a 1x1 convolution behind all that, where there is no residual; the result is
    then (N, L, P, Q).

    On a GPU, in float32, float16 and bfloat16, the convolution takes mean and variance of its result as it stores it,
    and the 1x1 normalises as it loads: each saves a pass over memory. These have a first derivative only. Elsewhere
    the functions named are called one after the other.
    Raises ValueError for an unknown activation, for a residual beside ``pointwise`` and for one value a channel, and
    RuntimeError for shapes and dtypes that do not fit.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}, not {activation!r}.")
    if residual is not None and pointwise is not None:
        raise ValueError("residual is not added before a pointwise convolution: give one of them.")
    if _is_fused(input):
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            input, weight = input.to(dtype), weight.to(dtype)
            residual, pointwise = (None if t is None else t.to(dtype) for t in (residual, pointwise))
        given = {"weight": weight, "residual": residual, "pointwise": pointwise}
        call = _call(input, given, stride, padding, dilation, groups, eps, activation)
        channels = {"running_mean": running_mean, "running_var": running_var}
        _check_channels(call.first.k, input, channels | {"norm_weight": norm_weight, "norm_bias": norm_bias})
        y, stats = _Fused.apply(input, weight, norm_weight, norm_bias, residual, pointwise, call)
        _move(running_mean, stats[0], momentum)
        count = call.first.n * call.first.h.out * call.first.w.out
        _move(running_var, stats[1] * (count / (count - 1)), momentum)
        return y
    z = conv2d(input, weight, None, stride, padding, dilation, groups)
    y = batch_norm(z, running_mean, running_var, norm_weight, norm_bias, True, momentum, eps)
    y = y if residual is None else y + residual
    y = y.relu() if activation == "relu" else y
    return y if pointwise is None else conv2d(y, pointwise)


def _is_fused(x: Tensor) -> bool:
    if x.device.type not in DEVICES or rows.missing() is not None:
        return False
    return x.dtype in DTYPES and x.dim() == 4 and x.numel() != 0


@dataclass(frozen=True)
class _Call:
    """Both convolutions, the second None without one, the norm between them, and the first one's arguments."""

    first: Problem
    norm: Problem
    second: Problem | None
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    eps: float

    @property
    def format(self) -> torch.memory_format:
        return torch.channels_last if self.first.layout == "nhwc" else torch.contiguous_format


def _call(x: Tensor, given: dict[str, Tensor | None], stride, padding, dilation, groups: int, eps, activation) -> _Call:
    """The problems, or RuntimeError where the tensors do not fit them."""
    for name, t in given.items():
        if t is not None and (t.device, t.dtype, t.dim()) != (x.device, x.dtype, 4):
            raise RuntimeError(
                f"{name} is {t.dtype} on {t.device} of {t.dim()} dimensions, but input is {x.dtype} on {x.device} of 4."
            )
    weight, pointwise, residual = given["weight"], given["pointwise"], given["residual"]
    stride, dilation = as_tuple(stride, 2, "stride"), as_tuple(dilation, 2, "dilation")
    padding = sides(padding, weight.shape[2:], stride, dilation)
    (n, c, height, width), (k, depth, r, s), kind = x.shape, weight.shape, kind_of(x)
    if groups < 1 or depth * groups != c:
        raise RuntimeError(f"weight has shape {tuple(weight.shape)}, but C={c} in {groups} groups.")
    top, bottom, left, right = padding
    try:
        first = Problem(
            f"n{n}c{c}h{height}w{width}_k{k}r{r}s{s}_u{stride[0]}x{stride[1]}_p{top}:{bottom}x{left}:{right}"
            f"_d{dilation[0]}x{dilation[1]}_g{groups}_{kind}"
        )
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    made = (n, k, first.h.out, first.w.out)
    if n * made[2] * made[3] == 1:
        raise ValueError(f"A batch norm in training needs more than one value a channel, but its input is {made}.")
    if residual is not None and tuple(residual.shape) != made:
        raise RuntimeError(f"residual has shape {tuple(residual.shape)}, but the result needs {made}.")
    size = f"n{n}c{k}h{made[2]}w{made[3]}"
    second = None
    if pointwise is not None:
        if tuple(pointwise.shape[1:]) != (k, 1, 1):
            raise RuntimeError(f"pointwise has shape {tuple(pointwise.shape)}, but it reads (L, {k}, 1, 1).")
        second = Problem(f"{size}_k{pointwise.shape[0]}r1s1_{kind}")
    norm = Problem(f"batchnorm2d_{size}_{kind}").replace(residual=residual is not None, activation=activation)
    return _Call(first, norm, second, stride, padding, dilation, eps)


def _check_channels(channels: int, x: Tensor, given: dict[str, Tensor | None]) -> None:
    for name, t in given.items():
        if t is not None and (tuple(t.shape), t.device) != ((channels,), x.device):
            raise RuntimeError(
                f"{name} has shape {tuple(t.shape)} on {t.device}, but there are {channels} channels on {x.device}."
            )


def _move(running: Tensor | None, batch: Tensor, momentum: float) -> None:
    if running is not None:
        with torch.no_grad():
            running.lerp_(batch.to(running.dtype), momentum)


def _start(planned) -> Tensor:
    y, launches = planned
    for launch in launches:
        launch()
    return y


def _normalize(call: _Call, z: Tensor, stats: Tensor, weight, bias, residual: Tensor | None) -> Tensor:
    """The activation of the norm, stored."""
    operands = {"w": weight, "bias": bias, "mean": stats[0], "variance": stats[1], "residual": residual}
    return _start(rows.load("norm_fprop").plan(call.norm, x=z, eps=call.eps, **operands))


class _Fused(torch.autograd.Function):
    """The result, and mean and biased variance of the convolution's, (2, K) in float."""

    @staticmethod
    def forward(ctx, x, weight, norm_weight, norm_bias, residual, pointwise, call):
        """Keeps the convolution's result, from which backward makes the norm's again, unless that is the result."""
        first = call.first
        affine = [None if t is None else t.float().contiguous() for t in (norm_weight, norm_bias)]
        x = x.contiguous(memory_format=call.format)
        stats = x.new_empty(2, first.k, dtype=torch.float32)
        file = rows.load("conv_gemm1x1" if rows.load("conv_gemm1x1").refuses(first) is None else "conv_fprop")
        if sentence := file.refuses(first):
            raise RuntimeError(sentence)
        z = _start(file.plan(first, x=x, w=weight, stats=stats))
        if call.second is None:
            kept = None if residual is None else residual.contiguous(memory_format=call.format)
            y = _normalize(call, z, stats, *affine, kept)
        else:
            matrix = rows.load("conv_gemm1x1")
            norm = rows.load("prologue").Norm(stats, *affine, call.eps, call.norm.activation)
            y = _start(matrix.plan(call.second, x=z, w=pointwise, norm=norm))
        hidden = y if call.second is None and call.norm.activation == "relu" else None
        ctx.save_for_backward(x, weight, norm_weight, norm_bias, pointwise, z, stats, *affine, hidden)
        ctx.call = call
        ctx.mark_non_differentiable(stats)
        return y, stats

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, _):
        x, weight, norm_weight, norm_bias, pointwise, z, stats, scale, shift, hidden = ctx.saved_tensors
        call, last = ctx.call, ctx.call.first.layout == "nhwc"
        names = ("x", "weight", "scale", "shift", "residual", "pointwise", "call")
        needs = dict(zip(names, ctx.needs_input_grad, strict=True))
        dpointwise = None
        if call.second is not None:
            hidden = _normalize(call, z, stats, scale, shift, None)
            if needs["pointwise"]:
                dpointwise = _wgrad(dy, hidden, (1, 1), *_UNIT, last)
            dy = _dgrad(dy, pointwise, None, z.shape[2:], *_UNIT)
        if call.norm.activation == "relu":
            dy = torch.ops.aten.threshold_backward(dy, hidden, 0)
        pair = torch.empty_like(stats)
        problem = call.norm.replace(pass_="dgrad", training=True, residual=False, activation="none")
        operands = {"x": z, "mean": stats[0], "variance": stats[1], "w": scale, "stats": pair}
        dense = dy.contiguous(memory_format=call.format)
        dz = _start(rows.load("norm_grad").plan(problem, y=dense, eps=call.eps, **operands))
        geometry = (call.stride, call.padding, call.dilation, call.first.groups)
        dx = _dgrad(dz, weight, None, x.shape[2:], *geometry) if needs["x"] else None
        dweight = _wgrad(dz, x, weight.shape[2:], *geometry, last) if needs["weight"] else None
        dscale = pair[0].to(norm_weight.dtype) if needs["scale"] else None
        dshift = pair[1].to(norm_bias.dtype) if needs["shift"] else None
        return dx, dweight, dscale, dshift, dy if needs["residual"] else None, dpointwise, None
