"""Batch norm backward: the gradients of weight and bias (wgrad), and of the input with them (dgrad).

dbias = sum dy and dweight = sum dy · xhat, xhat = (x - mean) / sqrt(variance + eps), are summed over pieces of the
pixels and merged in a fixed order in double. dx = w / sqrt(variance + eps) · (dy - (dbias + xhat · dweight) / count)
in training, without the second term in inference. Bytes: x and dy twice, dx once (wgrad: x and dy once); no atomics,
the same bits in every run. Both layouts, vectors along the axis that lies together.

Behind an activation (``Behind``) dy is the gradient of its result. It is multiplied by the derivative as it is loaded
and rounded as a tensor in memory would be, so the bits are those of a pass of its own, which would read two tensors and
write one. The derivative is taken at the norm's result, made again from x, or at a tensor that tells it, read beside.

It loses a fifth of its bytes to a kernel whose producer sums on the way. It has not run on a GPU yet: it is
interpreted and compiled ahead of time.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import (
    activation_gradient,
    image_row_column,
    inverse_deviation,
    narrow,
    normalize,
    offsets,
    rows_and_columns,
    widen,
)
from fastconv.kernels.triton.launch import SIZES, Launch, architecture_of, too_large, written
from fastconv.kernels.triton.moments import CHANNELS
from fastconv.kernels.triton.norm_fprop import EPS, WARPS, pieces_of, sizes, tile_of
from fastconv.problem import Problem

VALUES = 2  # of a piece and channel: dweight, dbias


@dataclass(frozen=True)
class Behind:
    """What follows the norm. alpha: the slope of leaky_relu below zero. bias: the norm's, in float.

    at: where the activation was applied, or for relu, relu6 and leaky_relu its result; without it the norm's result is
    made again. kept: a tensor for the gradient before the activation, which is that of a residual too.
    """

    activation: str
    alpha: float = 0.0
    bias: Tensor | None = None
    at: Tensor | None = None
    kept: Tensor | None = None


def refuses(problem: Problem) -> str | None:
    if problem.residual or problem.activation != "none" or problem.out_channels:
        return "The gradient of an epilogue is not part of it."
    return too_large(problem)


@triton.jit
def gradient_before(
    d,
    value,
    at,
    w,
    bias,
    mean,
    variance,
    places,
    inside,
    channel,
    channel_inside,
    eps,
    alpha,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    AT: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """In float, of a tile of dy in its own type; value: the norm's argument in float."""
    if ACTIVATION == "none":
        return widen(d)
    if AT:
        x = widen(tl.load(at + places, mask=inside, other=0.0))
    else:
        x = normalize(value, w, bias, mean, variance, channel, channel_inside, eps, WEIGHT, BIAS, True)
        x = widen(narrow(x, d.dtype))
    return widen(narrow(activation_gradient(widen(d), x, alpha, ACTIVATION), d.dtype))


@triton.jit(do_not_specialize=[*SIZES, "piece_steps", "eps"])
def sums(
    dy,
    x,
    w,
    bias,
    mean,
    variance,
    at,
    kept,
    partial,
    images,
    height,
    width,
    channels,
    piece_steps,
    eps,
    alpha,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    AT: tl.constexpr,
    KEPT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial: [pieces, 2, channels] of dweight and dbias. kept: with KEPT, the gradient before the activation."""
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_inside = channel < channels
    pixels = images * height * width
    first = tl.program_id(1) * piece_steps
    center = tl.load(mean + channel, mask=channel_inside, other=0.0)[None, :]
    products = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    gradients = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(piece_steps):
        pixel = ((first + step) * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
        image, h, v = image_row_column(pixel, height, width)
        inside = (pixel < pixels) & channel_inside[None, :]
        places = offsets(image, h, v, channel[None, :], height, width, channels, CHANNELS_LAST)
        value = widen(tl.load(x + places, mask=inside, other=0.0))
        d = tl.load(dy + places, mask=inside, other=0.0)
        d = gradient_before(
            d,
            value,
            at,
            w,
            bias,
            mean,
            variance,
            places,
            inside,
            channel,
            channel_inside,
            eps,
            alpha,
            WEIGHT,
            BIAS,
            AT,
            ACTIVATION,
        )
        if KEPT:
            tl.store(kept + places, narrow(d, kept.dtype.element_ty), mask=inside)
        products += tl.where(inside, d * (value - center), 0.0)
        gradients += d
    scale = inverse_deviation(variance, channel, channel_inside, eps)
    row = tl.program_id(1).to(tl.int64) * 2 * channels + channel
    tl.store(partial + row, tl.sum(products, axis=0) * scale, mask=channel_inside)
    tl.store(partial + row + channels, tl.sum(gradients, axis=0), mask=channel_inside)


@triton.jit(do_not_specialize=["pieces"])
def merge(partial, pair, values, pieces, BLOCK_N: tl.constexpr):
    """pair: [2, channels], ``values`` numbers in all."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for piece in range(pieces):
        part = tl.load(partial + tl.cast(piece, tl.int64) * values + i, mask=i < values, other=0.0)
        total += part.to(tl.float64)
    tl.store(pair + i, total.to(tl.float32), mask=i < values)


@triton.jit(do_not_specialize=[*SIZES, "eps"])
def apply(
    dy,
    x,
    w,
    bias,
    mean,
    variance,
    at,
    pair,
    dx,
    images,
    height,
    width,
    channels,
    eps,
    alpha,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    AT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TRAINING: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """pair: [2, channels], dweight and dbias."""
    pixel, channel = rows_and_columns(tl.program_id(0), channels, BLOCK_M, BLOCK_N)
    pixel = pixel[:, None]
    channel_inside = channel < channels
    pixels = images * height * width
    inside = (pixel < pixels) & channel_inside[None, :]
    image, h, v = image_row_column(pixel, height, width)
    places = offsets(image, h, v, channel[None, :], height, width, channels, CHANNELS_LAST)
    argument = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if TRAINING:
        argument = widen(tl.load(x + places, mask=inside, other=0.0))
    d = tl.load(dy + places, mask=inside, other=0.0)
    value = gradient_before(
        d,
        argument,
        at,
        w,
        bias,
        mean,
        variance,
        places,
        inside,
        channel,
        channel_inside,
        eps,
        alpha,
        WEIGHT,
        BIAS,
        AT,
        ACTIVATION,
    )
    scale = inverse_deviation(variance, channel, channel_inside, eps)
    if TRAINING:
        center = tl.load(mean + channel, mask=channel_inside, other=0.0)
        dweight = tl.load(pair + channel, mask=channel_inside, other=0.0)
        dbias = tl.load(pair + channels + channel, mask=channel_inside, other=0.0)
        normal = (argument - center[None, :]) * scale[None, :]
        count = tl.cast(pixels, tl.float32)
        value -= tl.math.div_rn(dbias[None, :] + normal * dweight[None, :], tl.zeros_like(value) + count)
    if WEIGHT:
        scale *= tl.load(w + channel, mask=channel_inside, other=0.0)
    tl.store(dx + places, narrow(value * scale[None, :], dx.dtype.element_ty), mask=inside)


def plan(
    problem: Problem,
    *,
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    w: Tensor | None = None,
    stats: Tensor | None = None,
    behind: Behind | None = None,
    eps: float = EPS,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the starts that write it; dgrad writes the gradients of weight and bias into ``stats`` too.

    behind: what y, in training, is the gradient behind.
    """
    tile = tile_of(problem)
    steps, pieces = pieces_of(problem, tile, architecture or architecture_of(x))
    pair = stats
    if problem.pass_ == "wgrad":
        pair = mean.new_empty(2, problem.c) if out is None else out
    common = {"x": x, "mean": mean, "variance": variance, "eps": float(eps), **sizes(problem, tile)}
    common |= {"w": variance if w is None else w, "WEIGHT": w is not None}
    kept = behind.kept if behind else None
    partial = torch.empty(pieces, VALUES, problem.c, dtype=torch.float32, device=x.device)
    merged = {"partial": partial, "pair": pair, "values": VALUES * problem.c, "pieces": pieces, "BLOCK_N": CHANNELS}
    columns = configure.cdiv(problem.c, tile.n)
    summed = {"dy": y, "partial": partial, "piece_steps": steps, **_behind(behind, x), **common}
    summed |= {"kept": x if kept is None else kept, "KEPT": kept is not None}
    starts = [
        Launch(sums, (columns, pieces), summed, WARPS),
        Launch(merge, (configure.cdiv(VALUES * problem.c, CHANNELS),), merged, 1),
    ]
    if problem.pass_ == "wgrad":
        return pair, starts
    dx = written(problem, y, (problem.n, problem.c, problem.h.size, problem.w.size), out)
    arguments = {
        "dy": y if kept is None else kept,
        "pair": pair,
        "dx": dx,
        "TRAINING": problem.training,
        **_behind(behind if kept is None else None, x),
        **common,
    }
    blocks = configure.cdiv(problem.n * problem.h.size * problem.w.size, tile.m) * columns
    starts.append(Launch(apply, (blocks,), arguments, WARPS))
    return dx, starts


def _behind(behind: Behind | None, x: Tensor) -> dict[str, Any]:
    """As the kernels name it; absent operands are pointers that nobody reads."""
    bias, at = (behind.bias, behind.at) if behind else (None, None)
    return {
        "bias": x if bias is None else bias,
        "at": x if at is None else at,
        "alpha": float(behind.alpha) if behind else 0.0,
        "BIAS": bias is not None,
        "AT": at is not None,
        "ACTIVATION": behind.activation if behind else "none",
    }
