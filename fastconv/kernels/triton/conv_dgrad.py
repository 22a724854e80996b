"""conv2d dgrad, and so the transposed convolution, as implicit matrix products by phases of the stride.

Input positions that share their remainder modulo the stride are reached by the same taps: each such phase is a dense
convolution of stride 1 with ceil(R / stride) x ceil(S / stride) taps, dx[phase][pixels, C] = dy[pixels, taps·K] ·
w[taps·K, C]. All phases run in one grid, one of its axes each; nothing is inserted and nothing is added atomically.
Tile and bytes are those of fprop; dx is written once, with bias, residual and activation applied on the way and an
optional channel slice as target. Groups of few channels share a tile, a block diagonal, as in fprop. Every stride,
dilation, padding and group size; both layouts.

It loses where phases are small maps (blocks have tails) or have different numbers of taps (the short ones end early
and nothing takes their place), for C / groups of 9 to 15, and in NCHW. It has not run on a GPU yet: it is interpreted
and compiled ahead of time.
"""

from math import gcd

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import finish_map, image_row_column, phase_taps
from fastconv.kernels.triton.igemm import accumulate
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    architecture_of,
    epilogue_arguments,
    filter_strides,
    matrix_arguments,
    slab_arguments,
    too_large,
    window_arguments,
    written,
)
from fastconv.problem import Problem

MOST_PHASES = 65535  # blocks of a grid's second axis


def refuses(problem: Problem) -> str | None:
    phases = problem.h.stride * problem.w.stride
    if phases > MOST_PHASES:
        return f"A grid has {MOST_PHASES} phases at most, but the strides make {phases}."
    return too_large(problem)


@triton.jit(do_not_specialize=SIZES)
def kernel(
    dy,
    w,
    bias,
    residual,
    out,
    images,
    height,
    width,
    out_height,
    out_width,
    slabs,
    channels,
    filters,
    all_channels,
    all_filters,
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
    CHANNELS_LAST: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_FILTERS: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """channels, filters: of a slab, which is a group or, with GROUP_CHANNELS and GROUP_FILTERS each, several."""
    phase_h = tl.program_id(1) // STRIDE_W
    phase_w = tl.program_id(1) % STRIDE_W
    first_r, taps_r, origin_h = phase_taps(phase_h, pad_h, R, STRIDE_H, DILATION_H, GCD_H)
    first_s, taps_s, origin_w = phase_taps(phase_w, pad_w, S, STRIDE_W, DILATION_W, GCD_W)
    rows = (height - phase_h + STRIDE_H - 1) // STRIDE_H
    columns = (width - phase_w + STRIDE_W - 1) // STRIDE_W

    tiles_n = tl.cdiv(channels, BLOCK_N)
    block = tl.program_id(0)
    slab = block % (tiles_n * slabs) // tiles_n
    pixel = block // (tiles_n * slabs) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # A phase may be empty where the stride is larger than the map.
    pixel_inside = pixel < images * rows * columns
    channel = slab * channels + column
    # The last slab may have fewer groups.
    column_inside = (column < channels) & (channel < all_channels)
    first_filter = slab * filters
    depth = tl.minimum(filters, all_filters - first_filter)
    if GROUP_CHANNELS:
        group = column // GROUP_CHANNELS
        column_of_group = column % GROUP_CHANNELS
    else:
        group = column
        column_of_group = column
    image, i, j = image_row_column(pixel, tl.maximum(rows, 1), tl.maximum(columns, 1))
    sums = accumulate(
        dy,
        w,
        image,
        i + origin_h,
        j + origin_w,
        pixel_inside,
        out_height,
        out_width,
        all_filters,
        first_filter,
        depth,
        tl.cast(first_filter, tl.int64) * w_k + column_of_group.to(tl.int64) * w_c,
        column_inside,
        group,
        w_k,
        w_r,
        w_s,
        first_r,
        first_s,
        taps_r,
        taps_s,
        dy,
        dy,
        dy,
        dy,
        0.0,
        0.0,
        -(DILATION_H // GCD_H),
        -(DILATION_W // GCD_W),
        STRIDE_H // GCD_H,
        STRIDE_W // GCD_W,
        CHANNELS_LAST,
        False,
        False,
        False,
        "none",
        GROUP_FILTERS,
        FLAT,
        EVEN,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    finish_map(
        sums,
        out,
        bias,
        residual,
        image,
        phase_h + i * STRIDE_H,
        phase_w + j * STRIDE_W,
        channel,
        pixel_inside,
        column_inside,
        height,
        width,
        all_channels,
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
    y: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it."""
    h, v = problem.h, problem.w
    dx = written(problem, y, (problem.n, problem.c, h.size, v.size), out)
    slab = configure.slab(problem, problem.c)
    common = gcd(h.stride, h.dilation), gcd(v.stride, v.dilation)
    pixels = problem.n * configure.cdiv(h.size, h.stride) * configure.cdiv(v.size, v.stride)
    taps = configure.cdiv(h.window * common[0], h.stride) * configure.cdiv(v.window * common[1], v.stride)
    architecture = architecture or architecture_of(y)
    tile = configure.matrix_tile(problem.dtype, pixels, slab.channels, taps * slab.filters, architecture, slab.filters)
    grid = (
        configure.cdiv(pixels, tile.m) * configure.cdiv(slab.channels, tile.n) * slab.count,
        h.stride * v.stride,
    )
    arguments = {
        "dy": y,
        "w": w,
        **slab_arguments(problem, slab),
        "GCD_H": common[0],
        "GCD_W": common[1],
        **filter_strides(w),
        **window_arguments(problem),
        **epilogue_arguments(problem, dx, problem.c, bias, residual),
        **matrix_arguments(problem, slab, slab.filters, tile),
    }
    return dx if out is None else out, [Launch(kernel, grid, arguments, tile.warps, tile.stages)]
