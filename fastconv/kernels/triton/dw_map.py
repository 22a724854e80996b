"""Depthwise fprop and dgrad: every channel has filters of its own, so there is no matrix and nothing to pad to 16.

A block computes a tile of pixels x channels and walks over the taps; sums stay in registers, neighbours' pixels come
from the first-level cache. fprop: y[p, k] = sum x[p · stride + tap, k / M] · w[k, tap] for M filters a channel. dgrad
gathers by phases of the stride: dx[h, c] = sum over M and the taps of its phase of dy · w; nothing is added
atomically. Bytes: x (dy) once where the cache keeps a window's rows, y (dx) once, with bias, residual and activation
on the way and an optional channel slice as target. Any filter size, stride and dilation; both layouts, vectors along
the axis that lies together.

It loses for filters of 7x7 and more, whose taps are loads rather than shared rows. It has not run on a GPU yet: it is
interpreted and compiled ahead of time.
"""

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import finish_map, image_row_column, offsets, phase_taps, rows_and_columns, widen
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    epilogue_arguments,
    filter_strides,
    too_large,
    window_arguments,
    written,
)
from fastconv.problem import Problem

WARPS = 4
ELEMENTS = 1024  # sums of a block
MOST_BLOCKS = 65535  # of a grid's second axis


def refuses(problem: Problem) -> str | None:
    if not problem.is_depthwise:
        return f"It takes one channel a group, but the problem has C={problem.c} in {problem.groups} groups."
    phases = problem.h.stride * problem.w.stride
    if problem.pass_ == "dgrad" and phases > MOST_BLOCKS:
        return f"A grid has {MOST_BLOCKS} phases at most, but the strides make {phases}."
    return too_large(problem)


@triton.jit
def forward(
    x,
    w,
    image,
    p,
    q,
    filter,
    pixel_inside,
    filter_inside,
    height,
    width,
    channels,
    pad_h,
    pad_w,
    w_k,
    w_r,
    w_s,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sums of output pixels (image, p, q), [BLOCK_M], by filters, [BLOCK_N], in float, taps in order."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    read = (filter // MULTIPLIER)[None, :]
    for r in range(R):
        h = (p * STRIDE_H - pad_h + r * DILATION_H)[:, None]
        for s in range(S):
            v = (q * STRIDE_W - pad_w + s * DILATION_W)[:, None]
            near = pixel_inside[:, None] & (h >= 0) & (h < height) & (v >= 0) & (v < width)
            places = offsets(image[:, None], h, v, read, height, width, channels, CHANNELS_LAST)
            value = tl.load(x + places, mask=near & filter_inside[None, :], other=0.0)
            taps = filter.to(tl.int64) * w_k + r * w_r + s * w_s
            weight = tl.load(w + taps, mask=filter_inside, other=0.0)
            sums += widen(value) * widen(weight)[None, :]
    return sums


@triton.jit(do_not_specialize=SIZES)
def kernel(
    source,
    w,
    bias,
    residual,
    out,
    images,
    height,
    width,
    out_height,
    out_width,
    channels,
    out_channels,
    pad_h,
    pad_w,
    w_k,
    w_c,
    w_r,
    w_s,
    alpha,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    GCD_H: tl.constexpr,
    GCD_W: tl.constexpr,
    FORWARD: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """channels: C. MULTIPLIER: filters a channel."""
    if FORWARD:
        phase_h = 0
        phase_w = 0
        rows = out_height
        columns = out_width
        written_channels = channels * MULTIPLIER
    else:
        phase_h = tl.program_id(1) // STRIDE_W
        phase_w = tl.program_id(1) % STRIDE_W
        rows = (height - phase_h + STRIDE_H - 1) // STRIDE_H
        columns = (width - phase_w + STRIDE_W - 1) // STRIDE_W
        written_channels = channels
    pixel, channel = rows_and_columns(tl.program_id(0), written_channels, BLOCK_M, BLOCK_N)
    pixel_inside = pixel < images * rows * columns
    channel_inside = channel < written_channels
    image, i, j = image_row_column(pixel, tl.maximum(rows, 1), tl.maximum(columns, 1))
    if FORWARD:
        sums = forward(
            source, w, image, i, j, channel, pixel_inside, channel_inside, height, width, channels, pad_h, pad_w,
            w_k, w_r, w_s, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIER, CHANNELS_LAST, BLOCK_M, BLOCK_N
        )  # fmt: skip
        rows_written = i
        columns_written = j
        heights = out_height
        widths = out_width
    else:
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        first_r, taps_r, origin_h = phase_taps(phase_h, pad_h, R, STRIDE_H, DILATION_H, GCD_H)
        first_s, taps_s, origin_w = phase_taps(phase_w, pad_w, S, STRIDE_W, DILATION_W, GCD_W)
        for t in range(taps_r):
            p = (i + origin_h - t * (DILATION_H // GCD_H))[:, None]
            r = first_r + t * (STRIDE_H // GCD_H)
            for u in range(taps_s):
                q = (j + origin_w - u * (DILATION_W // GCD_W))[:, None]
                s = first_s + u * (STRIDE_W // GCD_W)
                near = pixel_inside[:, None] & (p >= 0) & (p < out_height) & (q >= 0) & (q < out_width)
                for m in range(MULTIPLIER):
                    filter = channel * MULTIPLIER + m
                    places = offsets(
                        image[:, None],
                        p,
                        q,
                        filter[None, :],
                        out_height,
                        out_width,
                        channels * MULTIPLIER,
                        CHANNELS_LAST,
                    )
                    dy = tl.load(source + places, mask=near & channel_inside[None, :], other=0.0)
                    taps = filter.to(tl.int64) * w_k + r * w_r + s * w_s
                    weight = tl.load(w + taps, mask=channel_inside, other=0.0)
                    sums += widen(dy) * widen(weight)[None, :]
        rows_written = phase_h + i * STRIDE_H
        columns_written = phase_w + j * STRIDE_W
        heights = height
        widths = width
    finish_map(
        sums,
        out,
        bias,
        residual,
        image,
        rows_written,
        columns_written,
        channel,
        pixel_inside,
        channel_inside,
        heights,
        widths,
        written_channels,
        out_channels,
        alpha,
        CHANNELS_LAST,
        BIAS,
        RESIDUAL,
        ACTIVATION,
    )


def plan(
    problem: Problem,
    *,
    w: Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it."""
    h, v = problem.h, problem.w
    forward = problem.pass_ == "fprop"
    source = x if forward else y
    channels, height, width = (problem.k, h.out, v.out) if forward else (problem.c, h.size, v.size)
    result = written(problem, source, (problem.n, channels, height, width), out)
    phases = 1 if forward else h.stride * v.stride
    pixels = problem.n * (
        height * width if forward else configure.cdiv(height, h.stride) * configure.cdiv(width, v.stride)
    )
    tile = configure.map_tile(problem.dtype, pixels, channels, problem.layout == "nhwc", ELEMENTS)
    arguments = {
        "source": source,
        "w": w,
        "channels": problem.c,
        "GCD_H": gcd(h.stride, h.dilation),
        "GCD_W": gcd(v.stride, v.dilation),
        "FORWARD": forward,
        "MULTIPLIER": problem.k // problem.c,
        **filter_strides(w),
        **window_arguments(problem),
        **epilogue_arguments(problem, result, channels, bias, residual),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
    }
    grid = (configure.cdiv(pixels, tile.m) * configure.cdiv(channels, tile.n), phases)
    return result if out is None else out, [Launch(kernel, grid, arguments, WARPS)]
