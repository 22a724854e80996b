"""conv2d wgrad as an implicit matrix product over the pixels: dw[K, R·S·C] = dy[N·P·Q, K]^T · x[N·P·Q, R·S·C].

A block computes BLOCK_M filters x BLOCK_N columns (tap and channel, numbered together) of one group, or of several,
over one piece of the pixels. Where filters and columns make too few blocks for the chip, the pixels are cut into pieces
(split-K) whose partial sums go to memory in float and are added in a fixed order by ``reduce``: no atomics, the same
bits in every run. Bytes: dy once for every block of columns and x once for every block of filters, both mostly from the
second-level cache, and 8 · pieces · K·R·S·C / groups for the partial sums. Every stride, dilation, padding and group
size; both layouts.

Tiles have 64 rows on Hopper and later, 32 before, so groups of few filters share one, as many as fill it; of their
product the block diagonal is stored. ResNeXt's four channels a group, 7.4 GFLOP in batch 256 of
n256c128h56w56_k128r3s3_p1_g32, so are 118 GFLOP there, 150 us at 790 TFLOP/s, beside 96 us of bytes: as many as with a
tile for each group, whose rows would be empty instead, but from rows of 128 bytes, not 8.

It loses where K / groups is small for these rows (depthwise has a kernel of its own) and in NCHW, where channels lie
far apart. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure, reduce
from fastconv.kernels.triton.common import image_row_column, offsets, product
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    architecture_of,
    filter_strides,
    precision,
    slab_arguments,
    too_large,
    window_arguments,
)
from fastconv.problem import Problem


def refuses(problem: Problem) -> str | None:
    return too_large(problem)


@triton.jit(do_not_specialize=[*SIZES, "piece_steps"])
def kernel(
    x,
    dy,
    partial,
    images,
    height,
    width,
    out_height,
    out_width,
    channels,
    filters,
    all_channels,
    all_filters,
    pad_h,
    pad_w,
    piece_steps,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    GROUP_FILTERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """partial: [pieces, K, R, S, channels of a group]. piece_steps: BLOCK_K pixels each.

    channels, filters: of a slab, which is a group or, with GROUP_CHANNELS and GROUP_FILTERS each, several; of their
    products those within a group are kept.
    """
    columns = R * S * channels
    tiles_n = tl.cdiv(columns, BLOCK_N)
    tiles_m = tl.cdiv(filters, BLOCK_M)
    block = tl.program_id(0)
    slab = block // (tiles_n * tiles_m)
    first_filter = block // tiles_n % tiles_m * BLOCK_M
    filter = first_filter + tl.arange(0, BLOCK_M)
    column = block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = column % channels
    all_filter = slab * filters + filter
    all_channel = slab * channels + channel
    filter_inside = filter < filters
    column_inside = column < columns
    if GROUP_CHANNELS:
        # The last slab may have fewer groups.
        filter_inside &= all_filter < all_filters
        column_inside &= all_channel < all_channels
    tap = column // channels
    r = tap // S * DILATION_H - pad_h
    s = tap % S * DILATION_W - pad_w
    pixels = images * out_height * out_width
    first = tl.program_id(1) * piece_steps
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(piece_steps):
        pixel = (first + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        pixel_inside = pixel < pixels
        image, p, q = image_row_column(pixel, out_height, out_width)
        lines = image[:, None]
        h = p[:, None] * STRIDE_H + r[None, :]
        v = q[:, None] * STRIDE_W + s[None, :]
        inside = pixel_inside[:, None] & column_inside[None, :] & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        if CHANNELS_LAST:
            # Pixels are the rows of dy as they are numbered.
            gradients = pixel.to(tl.int64)[:, None] * all_filters + all_filter[None, :]
        else:
            gradients = offsets(
                lines, p[:, None], q[:, None], all_filter[None, :], out_height, out_width, all_filters, CHANNELS_LAST
            )
        a = tl.load(dy + gradients, mask=pixel_inside[:, None] & filter_inside[None, :], other=0.0)
        inputs = offsets(lines, h, v, all_channel[None, :], height, width, all_channels, CHANNELS_LAST)
        b = tl.load(x + inputs, mask=inside, other=0.0)
        sums = product(tl.trans(a), b, sums, PRECISION)
    # First one number, then the range: it takes fewer registers beside the sums.
    first_row = tl.program_id(1).to(tl.int64) * all_filters + slab * filters + first_filter
    row = first_row + tl.arange(0, BLOCK_M)
    inside = filter_inside[:, None] & column_inside[None, :]
    if GROUP_CHANNELS:
        inside &= (filter // GROUP_FILTERS)[:, None] == (channel // GROUP_CHANNELS)[None, :]
        columns = R * S * GROUP_CHANNELS
        column = tap * GROUP_CHANNELS + channel % GROUP_CHANNELS
    tl.store(partial + row[:, None] * columns + column[None, :], sums, mask=inside)


def plan(
    problem: Problem, *, x: Tensor, y: Tensor, out: Tensor | None = None, architecture: int | None = None
) -> tuple[Tensor, list[Launch]]:
    """The result, and the two starts that write it: partial sums, and their sum."""
    h, v = problem.h, problem.w
    channels = problem.c // problem.groups
    dw = x.new_empty(problem.k, channels, h.window, v.window) if out is None else out
    architecture = architecture or architecture_of(x)
    slab = configure.slab(problem, problem.k, configure.least_rows(problem.dtype, architecture))
    columns, pixels = slab.channels * h.window * v.window, problem.n * h.out * v.out
    tile = configure.matrix_tile(problem.dtype, slab.filters, columns, pixels, architecture)
    pieces = configure.splits(tile, slab.filters, columns * slab.count, pixels, architecture)
    steps = configure.cdiv(configure.cdiv(pixels, tile.k), pieces)
    pieces = configure.cdiv(configure.cdiv(pixels, tile.k), steps)
    blocks = configure.cdiv(slab.filters, tile.m) * configure.cdiv(columns, tile.n) * slab.count
    partial = torch.empty(pieces, problem.k, h.window, v.window, channels, dtype=torch.float32, device=x.device)
    arguments = {
        "x": x,
        "dy": y,
        "partial": partial,
        **slab_arguments(problem, slab),
        "piece_steps": steps,
        **window_arguments(problem),
        "PRECISION": precision(problem),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    first = Launch(kernel, (blocks, pieces), arguments, tile.warps, tile.stages)
    return dw, [first, reduce.launch(partial, dw, (h.window, v.window), filter_strides(dw))]
