"""A convolution and its training batch norm on Triton's kernels, as operators that torch traces whole.

``fastconv::conv2d_batch_norm`` also returns what its gradient needs of it: z, the convolution's result, and stats,
(2, K) in float, its mean and biased variance. Backward makes the norm's result again from both, unless it is kept.
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


@torch.library.custom_op("fastconv::conv2d_batch_norm", mutates_args=())
def conv2d_batch_norm(
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    second: Tensor | None,
    geometry: Sequence[int],
    second_geometry: Sequence[int],
    eps: float,
    activation: str,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(batch_norm(conv2d(x, weight)) + residual), or conv2d(act(batch_norm(conv2d(x, weight))), second), z, stats.

    RuntimeError where the tensors do not fit, ValueError for one value a channel.
    """
    _check_maps(x, {"weight": weight, "residual": residual, "second": second})
    last = gives_channels_last(x, weight)
    first = _problem(x, weight, geometry, "weight", last)
    made = (first.n, first.k, first.h.out, first.w.out)
    if made[0] * made[2] * made[3] == 1:
        raise ValueError(f"A batch norm in training needs more than one value a channel, but its input is {made}.")
    if residual is not None and tuple(residual.shape) != made:
        raise RuntimeError(f"residual has shape {tuple(residual.shape)}, but the result needs {made}.")
    check_channels(first.k, x, {"norm_weight": norm_weight, "norm_bias": norm_bias})
    stats = x.new_empty(2, first.k, dtype=torch.float32)
    z = _convolve(first, x.contiguous(memory_format=_format(last)), weight, stats=stats)
    if second is None:
        return norm_apply(z, stats, norm_weight, norm_bias, residual, eps, activation, alpha), z, stats
    affine = _affine(norm_weight, norm_bias)
    norm = rows.load("prologue").Norm(stats, *affine, eps, activation, alpha)
    last = gives_channels_last(as_normalized(torch.empty_like(z, device="meta")), second)
    behind = _problem(z, second, second_geometry, "second", last)
    return _convolve(behind, z.contiguous(memory_format=_format(last)), second, norm=norm), z, stats


@conv2d_batch_norm.register_fake
def _(x, weight, norm_weight, norm_bias, residual, second, geometry, second_geometry, eps, activation, alpha):
    z = empty(x, fprop_shape(x, weight, *_parts(geometry)), gives_channels_last(x, weight))
    stats = x.new_empty((2, weight.shape[0]), dtype=torch.float32)
    if second is None:
        return as_normalized(z), z, stats
    last = gives_channels_last(as_normalized(z), second)
    y = empty(x, fprop_shape(z, second, *_parts(second_geometry)), last)
    return y, z, stats


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
    """act(norm of z by stats + residual), in z's layout."""
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


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, norm_weight, norm_bias, residual, second, *rest = inputs
    y, z, stats = output
    ctx.geometry, ctx.second_geometry, ctx.eps, ctx.activation, ctx.alpha = rest
    told = residual is not None and _is_piecewise(ctx.activation, ctx.alpha)
    added = None if told or ctx.activation == "none" else residual
    ctx.save_for_backward(x, weight, norm_weight, norm_bias, added, second, z, stats, y if told else None)
    ctx.mark_non_differentiable(z, stats)
    ctx.set_materialize_grads(False)


@partial(conv2d_batch_norm.register_autograd, setup_context=_keep)
def _(ctx, dy: Tensor | None, _dz, _dstats):
    nothing = (None,) * 5
    if dy is None:
        return (None,) * 6 + nothing
    return (*(_twice(ctx, dy) if torch.is_grad_enabled() else _once(ctx, dy)), *nothing)


def _once(ctx, dy: Tensor) -> list[Tensor | None]:
    """The gradients of the six tensors, by the kernels."""
    x, weight, norm_weight, norm_bias, residual, second, z, stats, at = ctx.saved_tensors
    needs, (activation, alpha) = ctx.needs_input_grad, (ctx.activation, ctx.alpha)
    again = partial(norm_apply, z, stats, norm_weight, norm_bias, residual, ctx.eps)
    dsecond = None
    if second is not None:
        if needs[5]:
            dsecond = _filter_gradient(dy, again(activation, alpha), second, ctx.second_geometry)
        dy = _dgrad(dy, second, None, z.shape[2:], *_parts(ctx.second_geometry))
    if residual is not None:
        at = again("none", 0.0)
    keeps = needs[4] and activation != "none"
    dz, pair, kept = norm_grad(dy, z, stats, norm_weight, norm_bias, at, ctx.eps, activation, alpha, keeps)
    return [
        _dgrad(dz, weight, None, x.shape[2:], *_parts(ctx.geometry)) if needs[0] else None,
        _filter_gradient(dz, x, weight, ctx.geometry) if needs[1] else None,
        pair[0].to(norm_weight.dtype) if needs[2] else None,
        pair[1].to(norm_bias.dtype) if needs[3] else None,
        (kept if keeps else dy) if needs[4] else None,
        dsecond,
    ]


def _twice(ctx, dy: Tensor) -> list[Tensor | None]:
    """The same gradients with gradients of their own: those of torch's functions, run again one after the other."""
    x, weight, norm_weight, norm_bias, residual, second, _, _, hidden = ctx.saved_tensors
    u = _composed(x, weight, ctx.geometry)
    u = torch.nn.functional.batch_norm(u, None, None, *_affine(norm_weight, norm_bias), training=True, eps=ctx.eps)
    if hidden is None:
        u = u if residual is None else u + residual
        y = activated(u, ctx.activation, ctx.alpha)
        y = y if second is None else _composed(y, second, ctx.second_geometry)
    else:
        # The result tells the derivative, and the residual was not kept.
        y, dy = u, _through_result(dy, hidden.detach(), ctx.activation, ctx.alpha)
    inputs = (x, weight, norm_weight, norm_bias, residual, second)
    wanted = [i for i, t in enumerate(inputs) if ctx.needs_input_grad[i] and t is not None]
    found = dict(zip(wanted, torch.autograd.grad(y, [inputs[i] for i in wanted], dy, create_graph=True), strict=True))
    if ctx.needs_input_grad[4] and residual is None:
        found[4] = dy
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


def _convolve(problem: Problem, x: Tensor, weight: Tensor, **beside) -> Tensor:
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
