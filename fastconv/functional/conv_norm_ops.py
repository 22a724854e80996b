"""Convolutions and their training batch norms on Triton's kernels, as operators that torch traces whole.

``fastconv::conv2d_moments`` gives a convolution's result z and its stats, (2, K) in float, mean and biased variance.
``norm_apply`` is the norm by them, and ``norm_conv2d`` the norm on the way into a convolution, which gives its own
stats for the next. A chain of them is a network's; stats have no gradient, because that of z takes their part.
A geometry is nine ints: stride of H and W, padding at the top, bottom, left and right, dilation of H and W, groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastconv.functional.fused import DTYPES, kind_of
from fastconv.kernels import triton as rows
from fastconv.ops.conv2d import empty, fprop_shape, gives_channels_last
from fastconv.ops.norm import as_normalized
from fastconv.problem import Problem

PIECEWISE = ("relu", "relu6", "leaky_relu")  # whose derivative the result tells

_aten = torch.ops.aten
_dgrad = torch.ops.fastconv.conv2d_dgrad.default
_wgrad = torch.ops.fastconv.conv2d_wgrad.default


@torch.library.custom_op("fastconv::conv2d_moments", mutates_args=())
def conv2d_moments(x: Tensor, weight: Tensor, geometry: Sequence[int]) -> tuple[Tensor, Tensor]:
    """conv2d(x, weight) and its stats.

    RuntimeError where the tensors do not fit, ValueError for one value a channel.
    """
    _check_maps(x, {"weight": weight})
    last = gives_channels_last(x, weight)
    return _measured(_problem(x, weight, geometry, "weight", last), x, weight)


@conv2d_moments.register_fake
def _(x, weight, geometry):
    z = empty(x, fprop_shape(x, weight, *_parts(geometry)), gives_channels_last(x, weight))
    return z, x.new_empty((2, weight.shape[0]), dtype=torch.float32)


@torch.library.custom_op("fastconv::norm_conv2d", mutates_args=())
def norm_conv2d(
    z: Tensor,
    stats: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    second: Tensor,
    geometry: Sequence[int],
    eps: float,
    activation: str,
    alpha: float,
    measures: bool,
) -> tuple[Tensor, Tensor]:
    """conv2d(act(norm of z by stats), second) and, where it measures, its own stats, else nothing."""
    _check_maps(z, {"second": second})
    last = gives_channels_last(as_normalized(torch.empty_like(z, device="meta")), second)
    problem = _problem(z, second, geometry, "second", last)
    norm = rows.load("prologue").Norm(stats, *_affine(norm_weight, norm_bias), eps, activation, alpha)
    if measures:
        return _measured(problem, z, second, norm=norm)
    return _convolve(problem, z, second, norm=norm), stats.new_empty(0)


@norm_conv2d.register_fake
def _(z, stats, norm_weight, norm_bias, second, geometry, eps, activation, alpha, measures):
    last = gives_channels_last(as_normalized(z), second)
    y = empty(z, fprop_shape(z, second, *_parts(geometry)), last)
    return y, stats.new_empty((2, second.shape[0]) if measures else (0,))


@torch.library.custom_op("fastconv::norm_apply", mutates_args=())
def norm_apply(
    z: Tensor,
    stats: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    activation: str,
    alpha: float,
) -> Tensor:
    """act(norm of z by stats + residual), in z's layout. RuntimeError where residual does not fit."""
    _check_maps(z, {"residual": residual})
    if residual is not None and residual.shape != z.shape:
        raise RuntimeError(f"residual has shape {tuple(residual.shape)}, but the result needs {tuple(z.shape)}.")
    kind = kind_of(z)
    n, c, h, w = z.shape
    problem = Problem(f"batchnorm2d_n{n}c{c}h{h}w{w}_{kind}")
    problem = problem.replace(residual=residual is not None, activation=activation, alpha=alpha)
    kept = None if residual is None else residual.contiguous(memory_format=_format(kind.endswith("nhwc")))
    scale, shift = _affine(norm_weight, norm_bias)
    operands = {"w": scale, "bias": shift, "mean": stats[0], "variance": stats[1], "residual": kept}
    return _start(rows.load("norm_fprop").plan(problem, x=z, eps=eps, out=as_normalized(z), **operands))


@norm_apply.register_fake
def _(z, stats, norm_weight, norm_bias, residual, eps, activation, alpha):
    return as_normalized(z)


@torch.library.custom_op("fastconv::norm_grad", mutates_args=())
def norm_grad(
    dy: Tensor,
    z: Tensor,
    stats: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    at: Tensor | None,
    eps: float,
    activation: str,
    alpha: float,
    keeps: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a training batch norm and its activation: the gradient of z; those of weight and bias, (2, K) in float; with
    ``keeps`` that before the activation, else nothing. at: as ``norm_grad.Behind`` has it.
    """
    kind, file = kind_of(z), rows.load("norm_grad")
    n, c, h, w = z.shape
    problem = Problem(f"batchnorm2d_n{n}c{c}h{h}w{w}_{kind}").replace(pass_="dgrad", training=True)
    pair = torch.empty_like(stats)
    scale, shift = _affine(norm_weight, norm_bias)
    dense, tells = (None if t is None else t.contiguous(memory_format=_format(kind.endswith("nhwc"))) for t in (dy, at))
    dz, kept = torch.empty_like(z), torch.empty_like(z) if keeps else None
    behind = file.Behind(activation, alpha, shift, tells, kept)
    operands = {"x": z, "mean": stats[0], "variance": stats[1], "w": scale, "stats": pair, "behind": behind}
    return (
        _start(file.plan(problem, y=dense, eps=eps, out=dz, **operands)),
        pair,
        z.new_empty(0) if kept is None else kept,
    )


@norm_grad.register_fake
def _(dy, z, stats, norm_weight, norm_bias, at, eps, activation, alpha, keeps):
    return torch.empty_like(z), torch.empty_like(stats), torch.empty_like(z) if keeps else z.new_empty(0)


def activated(x: Tensor, activation: str, alpha: float) -> Tensor:
    """By torch's functions."""
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(x, alpha)
    if activation == "gelutanh":
        return torch.nn.functional.gelu(x, approximate="tanh")
    return x if activation == "none" else getattr(torch.nn.functional, activation)(x)


def _is_piecewise(activation: str, alpha: float) -> bool:
    return activation in PIECEWISE and alpha >= 0


def _through_result(dy: Tensor, y: Tensor, activation: str, alpha: float) -> Tensor:
    """The gradient before a piecewise activation whose result is y."""
    match activation:
        case "relu":
            return _aten.threshold_backward(dy, y, 0)
        case "relu6":
            return _aten.hardtanh_backward(dy, y, 0, 6)
        case _:
            return _aten.leaky_relu_backward(dy, y, alpha, False)


def _keep_convolved(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.geometry = inputs
    ctx.save_for_backward(x, weight)
    ctx.mark_non_differentiable(output[1])


@partial(conv2d_moments.register_autograd, setup_context=_keep_convolved)
def _(ctx, dz: Tensor, _dstats):
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    return (
        _dgrad(dz, weight, None, x.shape[2:], *_parts(ctx.geometry)) if needs[0] else None,
        _filter_gradient(dz, x, weight, ctx.geometry) if needs[1] else None,
        None,
    )


def _keep_before(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    z, stats, norm_weight, norm_bias, second, ctx.geometry, *ctx.options, _ = inputs
    ctx.save_for_backward(z, stats, norm_weight, norm_bias, second)
    ctx.mark_non_differentiable(output[1])


@partial(norm_conv2d.register_autograd, setup_context=_keep_before)
def _(ctx, dy: Tensor, _dstats):
    z, stats, *affine, second = ctx.saved_tensors
    needs, nothing = ctx.needs_input_grad, (None,) * 5
    if torch.is_grad_enabled():
        y = _composed(_normed(z, affine, None, *ctx.options), second, ctx.geometry)
        dz, dweight, dbias, dsecond = _gradients(y, (z, *affine, second), (needs[0], *needs[2:5]), dy)
        return dz, None, dweight, dbias, dsecond, *nothing
    dsecond = None
    if needs[4]:
        dsecond = _filter_gradient(dy, norm_apply(z, stats, *affine, None, *ctx.options), second, ctx.geometry)
    if not any(needs[:4]):
        return (None,) * 4 + (dsecond, *nothing)
    dhidden = _dgrad(dy, second, None, z.shape[2:], *_parts(ctx.geometry))
    dz, pair, _ = norm_grad(dhidden, z, stats, *affine, None, *ctx.options, False)
    return dz, None, *_as_parameters(pair, affine, needs[2:4]), dsecond, *nothing


def _keep_applied(ctx, inputs: tuple, output: Tensor) -> None:
    z, stats, norm_weight, norm_bias, residual, *ctx.options = inputs
    _, activation, alpha = ctx.options
    told = residual is not None and _is_piecewise(activation, alpha)
    added = None if told or activation == "none" else residual
    ctx.save_for_backward(z, stats, norm_weight, norm_bias, added, output if told else None)


@partial(norm_apply.register_autograd, setup_context=_keep_applied)
def _(ctx, dy: Tensor):
    z, stats, *affine, residual, at = ctx.saved_tensors
    needs, (eps, activation, alpha) = ctx.needs_input_grad, ctx.options
    if torch.is_grad_enabled():
        if at is not None:  # The result tells the derivative, and the residual was not kept.
            dy, activation = _through_result(dy, at.detach(), activation, alpha), "none"
        y = _normed(z, affine, residual, eps, activation, alpha)
        found = _gradients(y, (z, *affine, residual), (needs[0], *needs[2:5]), dy)
        return found[0], None, *found[1:3], dy if needs[4] and residual is None else found[3], None, None, None
    if residual is not None:
        at = norm_apply(z, stats, *affine, residual, eps, "none", 0.0)
    keeps = needs[4] and activation != "none"
    dz, pair, kept = norm_grad(dy, z, stats, *affine, at, *ctx.options, keeps)
    added = kept if keeps else dy if needs[4] else None
    return dz, None, *_as_parameters(pair, affine, needs[2:4]), added, None, None, None


def _as_parameters(pair: Tensor, affine: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of weight and bias that are needed, in their types."""
    return [one.to(t.dtype) if need else None for one, t, need in zip(pair, affine, needs, strict=True)]


def _normed(z: Tensor, affine: Sequence, residual: Tensor | None, eps: float, activation: str, alpha: float) -> Tensor:
    """The norm by torch's functions, which have gradients of every order."""
    u = torch.nn.functional.batch_norm(z, None, None, *_affine(*affine), training=True, eps=eps)
    return activated(u if residual is None else u + residual, activation, alpha)


def _gradients(y: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool], dy: Tensor) -> list[Tensor | None]:
    """Those of the inputs that need one, with gradients of their own."""
    wanted = [i for i, t in enumerate(inputs) if needs[i] and t is not None]
    found = dict(zip(wanted, torch.autograd.grad(y, [inputs[i] for i in wanted], dy, create_graph=True), strict=True))
    return [found.get(i) for i in range(len(inputs))]


def _composed(x: Tensor, weight: Tensor, geometry: Sequence[int]) -> Tensor:
    return torch.ops.fastconv.conv2d(x, weight, None, *_parts(geometry))


def _filter_gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[int]) -> Tensor:
    stride, padding, dilation, groups = _parts(geometry)
    return _wgrad(dy, x, weight.shape[2:], stride, padding, dilation, groups, gives_channels_last(x, weight))


def _parts(geometry: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int], int]:
    """stride, padding, dilation, groups."""
    return geometry[:2], geometry[2:6], geometry[6:8], geometry[8]


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _affine(*parameters: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.float().contiguous() for t in parameters]


def check(x: Tensor, weight: Tensor, given: dict[str, Tensor | None], channels: dict[str, Tensor | None]) -> None:
    """RuntimeError naming the first map, or the first vector of weight's filters, that does not fit."""
    _check_maps(x, {"weight": weight, **given})
    check_channels(weight.shape[0], x, channels)


def _check_maps(x: Tensor, given: dict[str, Tensor | None]) -> None:
    for name, t in given.items():
        if t is not None and (t.device, t.dtype, t.dim()) != (x.device, x.dtype, 4):
            raise RuntimeError(
                f"{name} is {t.dtype} on {t.device} of {t.dim()} dimensions, but input is {x.dtype} on {x.device} of 4."
            )


def check_channels(channels: int, x: Tensor, given: dict[str, Tensor | None]) -> None:
    """RuntimeError naming the first that is no vector of ``channels`` on x's device."""
    for name, t in given.items():
        if t is not None and (tuple(t.shape), t.device) != ((channels,), x.device):
            raise RuntimeError(
                f"{name} has shape {tuple(t.shape)} on {t.device}, but there are {channels} channels on {x.device}."
            )


def _problem(x: Tensor, weight: Tensor, geometry: Sequence[int], name: str, last: bool) -> Problem:
    """Of one of the convolutions, or RuntimeError where its tensors do not fit."""
    (n, c, height, width), (k, depth, r, s) = x.shape, weight.shape
    stride, (top, bottom, left, right), dilation, groups = _parts(geometry)
    if groups < 1 or depth * groups != c:
        raise RuntimeError(f"{name} has shape {tuple(weight.shape)}, but C={c} in {groups} groups.")
    kind = kind_of(x)[: -len("nchw")] + ("nhwc" if last else "nchw")
    try:
        problem = Problem(
            f"n{n}c{c}h{height}w{width}_k{k}r{r}s{s}_u{stride[0]}x{stride[1]}_p{top}:{bottom}x{left}:{right}"
            f"_d{dilation[0]}x{dilation[1]}_g{groups}_{kind}"
        )
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    if sentence := _file(problem).refuses(problem):
        raise RuntimeError(sentence)
    return problem


def _file(problem: Problem):
    """The plain product's kernel where it takes the problem, the implicit one's elsewhere."""
    product = rows.load("conv_gemm1x1")
    return product if product.refuses(problem) is None else rows.load("conv_fprop")


def _measured(problem: Problem, x: Tensor, weight: Tensor, **beside) -> tuple[Tensor, Tensor]:
    made = (problem.n, problem.k, problem.h.out, problem.w.out)
    if made[0] * made[2] * made[3] == 1:
        raise ValueError(f"A batch norm in training needs more than one value a channel, but its input is {made}.")
    stats = x.new_empty(2, problem.k, dtype=torch.float32)
    return _convolve(problem, x, weight, stats=stats, **beside), stats


def _convolve(problem: Problem, x: Tensor, weight: Tensor, **beside) -> Tensor:
    x = x.contiguous(memory_format=_format(problem.layout == "nhwc"))
    out = empty(x, (problem.n, problem.k, problem.h.out, problem.w.out), problem.layout == "nhwc")
    return _start(_file(problem).plan(problem, x=x, w=weight, out=out, **beside))


def _start(planned) -> Tensor:
    y, launches = planned
    for launch in launches:
        launch()
    return y


def takes(x: Tensor) -> bool:
    """Whether the kernels' dtypes and sizes have it."""
    return x.dtype in DTYPES and x.dim() == 4 and x.numel() != 0
