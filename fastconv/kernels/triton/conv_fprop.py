"""conv2d fprop as an implicit matrix product: y[N·P·Q, K] = x[N·P·Q, R·S·C] · w[R·S·C, K].

A block computes BLOCK_M pixels x BLOCK_N filters of one group, or of several; blocks that share pixels follow each
other, so that x comes from the second-level cache for all but the first. Bytes: x once for every ceil(K / BLOCK_N) from
there, w once for every block of pixels, y once, with bias, residual and activation applied on the way and an optional
channel slice as target; mean and variance of a training batch norm behind it are taken from the tiles as they are
stored (``moments``); one before it is applied to what is loaded, and the padding stays zero (``prologue``). Every
stride, dilation, padding and group size; both layouts; float exact, tf32, f16, bf16.

Matrix instructions have 16 columns, so groups of few filters share a tile, as many as fill them: the filter's tile is a
block diagonal, zero between groups. ResNeXt's four channels a group, 7.4 GFLOP in batch 256 of
n256c128h56w56_k128r3s3_p1_g32, so are 30 GFLOP, 37 us at 790 TFLOP/s, beside 96 us of bytes. A tile for each group
would have as many, in empty columns; what the groups gain is rows of 32 bytes, whole sectors, where each would load and
store 8 of them, and a quarter of the blocks.

It loses where those zeros are more than the bytes hide (depthwise has kernels of its own), where K / groups is 9 to 15
(columns are padded to 16), for C = 3 (no vectors) and in NCHW (rows of pixels lie across the vectors of the product).
It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure, moments, prologue
from fastconv.kernels.triton.common import finish_map, image_row_column
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


def refuses(problem: Problem) -> str | None:
    return too_large(problem)


@triton.jit(do_not_specialize=[*SIZES, "eps", "norm_alpha"])
def kernel(
    x,
    w,
    bias,
    residual,
    out,
    partial,
    mean,
    variance,
    norm_weight,
    norm_bias,
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
    eps,
    norm_alpha,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MOMENTS: tl.constexpr,
    NORM: tl.constexpr,
    NORM_WEIGHT: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    NORM_ACTIVATION: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_FILTERS: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """channels, filters: of a slab, which is a group or, with GROUP_CHANNELS and GROUP_FILTERS each, several.
    partial: with MOMENTS those of y, a piece for every tile of pixels. NORM: x is normalised on the way.
    """
    tiles_n = tl.cdiv(filters, BLOCK_N)
    block = tl.program_id(0)
    slab = block % (tiles_n * slabs) // tiles_n
    pixel_tile = block // (tiles_n * slabs)
    pixel = pixel_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    filter = block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    pixel_inside = pixel < images * out_height * out_width
    channel = slab * filters + filter
    # The last slab may have fewer groups.
    filter_inside = (filter < filters) & (channel < all_filters)
    first_channel = slab * channels
    depth = tl.minimum(channels, all_channels - first_channel)
    filter_offsets = channel.to(tl.int64) * w_k
    if GROUP_CHANNELS:
        group = filter // GROUP_FILTERS
        filter_offsets -= (group * GROUP_CHANNELS).to(tl.int64) * w_c
    else:
        group = filter
    image, p, q = image_row_column(pixel, out_height, out_width)
    sums = accumulate(
        x,
        w,
        image,
        p * STRIDE_H - pad_h,
        q * STRIDE_W - pad_w,
        pixel_inside,
        height,
        width,
        all_channels,
        first_channel,
        depth,
        filter_offsets,
        filter_inside,
        group,
        w_c,
        w_r,
        w_s,
        0,
        0,
        R,
        S,
        norm_weight,
        norm_bias,
        mean,
        variance,
        eps,
        norm_alpha,
        DILATION_H,
        DILATION_W,
        1,
        1,
        CHANNELS_LAST,
        NORM,
        NORM_WEIGHT,
        NORM_BIAS,
        NORM_ACTIVATION,
        GROUP_CHANNELS,
        FLAT,
        EVEN,
        PRECISION,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
    )
    y = finish_map(
        sums,
        out,
        bias,
        residual,
        image,
        p,
        q,
        channel,
        pixel_inside,
        filter_inside,
        out_height,
        out_width,
        all_filters,
        out_channels,
        alpha,
        CHANNELS_LAST,
        BIAS,
        RESIDUAL,
        ACTIVATION,
    )
    if MOMENTS:
        moments.store_tile(y, partial, pixel_tile, channel, pixel_inside, filter_inside, all_filters)


def plan(
    problem: Problem,
    *,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    stats: Tensor | None = None,
    norm: prologue.Norm | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it; with ``stats``, (2, K) in float, also its mean and biased variance.

    norm: applied to x first.
    """
    h, v = problem.h, problem.w
    y = written(problem, x, (problem.n, problem.k, h.out, v.out), out)
    slab = configure.slab(problem, problem.k)
    pixels, depth = problem.n * h.out * v.out, slab.channels * h.window * v.window
    architecture = architecture or architecture_of(x)
    deepest = prologue.DEPTH if norm else configure.DEPTHS[-1]
    tile = configure.matrix_tile(problem.dtype, pixels, slab.filters, depth, architecture, slab.channels, deepest)
    tiles = configure.cdiv(pixels, tile.m)
    grid = (tiles * configure.cdiv(slab.filters, tile.n) * slab.count,)
    partial, merges = moments.taken(stats, tiles)
    arguments = {
        "x": x,
        "w": w,
        **slab_arguments(problem, slab),
        **filter_strides(w),
        **window_arguments(problem),
        **epilogue_arguments(problem, y, problem.k, bias, residual),
        "partial": y if partial is None else partial,
        "MOMENTS": partial is not None,
        **prologue.arguments(norm, x),
        **matrix_arguments(problem, slab, slab.channels, tile),
    }
    start = Launch(kernel, grid, arguments, tile.warps, tile.stages)
    return y if out is None else out, [start, *merges]
