"""conv2d wgrad as an implicit matrix product over the pixels: dw[K, R·S·C] = dy[N·P·Q, K]^T · x[N·P·Q, R·S·C].

A block computes BLOCK_M filters x BLOCK_N columns (tap and channel, numbered together) of one group, over one piece of
the pixels. Where filters and columns make too few blocks for the chip, the pixels are cut into pieces (split-K) whose
partial sums go to memory in float and are added in a fixed order by ``reduce``: no atomics, the same bits in every
run. Bytes: dy once for every block of columns and x once for every block of filters, both mostly from the second-level
cache, and 8 · pieces · K·R·S·C / groups for the partial sums. Every stride, dilation, padding and group size; both
layouts.

It loses where K / groups is below 16 (rows are padded: depthwise has a kernel of its own) and in NCHW, where channels
lie far apart. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
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
    groups,
    channels,
    filters,
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
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """partial: [pieces, K, R, S, channels]; channels, filters: of one group. piece_steps: BLOCK_K pixels each."""
    columns = R * S * channels
    tiles_n = tl.cdiv(columns, BLOCK_N)
    tiles_m = tl.cdiv(filters, BLOCK_M)
    block = tl.program_id(0)
    group = block // (tiles_n * tiles_m)
    filter = block // tiles_n % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column = block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    filter_inside = filter < filters
    column_inside = column < columns
    channel = column % channels
    tap = column // channels
    r = tap // S * DILATION_H - pad_h
    s = tap % S * DILATION_W - pad_w
    all_filters = (group * filters + filter)[None, :]
    all_channels = (group * channels + channel)[None, :]
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
        gradients = offsets(
            lines, p[:, None], q[:, None], all_filters, out_height, out_width, filters * groups, CHANNELS_LAST
        )
        a = tl.load(dy + gradients, mask=pixel_inside[:, None] & filter_inside[None, :], other=0.0)
        inputs = offsets(lines, h, v, all_channels, height, width, channels * groups, CHANNELS_LAST)
        b = tl.load(x + inputs, mask=inside, other=0.0)
        sums = product(tl.trans(a), b, sums, PRECISION)
    row = tl.program_id(1).to(tl.int64) * filters * groups + group * filters + filter
    inside = filter_inside[:, None] & column_inside[None, :]
    tl.store(partial + row[:, None] * columns + column[None, :], sums, mask=inside)


def plan(
    problem: Problem, *, x: Tensor, y: Tensor, out: Tensor | None = None, architecture: int | None = None
) -> tuple[Tensor, list[Launch]]:
    """The result, and the two starts that write it: partial sums, and their sum."""
    h, v = problem.h, problem.w
    channels, filters = problem.c // problem.groups, problem.k // problem.groups
    dw = x.new_empty(problem.k, channels, h.window, v.window) if out is None else out
    columns, pixels = channels * h.window * v.window, problem.n * h.out * v.out
    architecture = architecture or architecture_of(x)
    tile = configure.matrix_tile(problem.dtype, filters, columns, pixels, architecture)
    pieces = configure.splits(tile, filters, columns * problem.groups, pixels, architecture)
    steps = configure.cdiv(configure.cdiv(pixels, tile.k), pieces)
    pieces = configure.cdiv(configure.cdiv(pixels, tile.k), steps)
    blocks = configure.cdiv(filters, tile.m) * configure.cdiv(columns, tile.n) * problem.groups
    partial = torch.empty(pieces, problem.k, h.window, v.window, channels, dtype=torch.float32, device=x.device)
    arguments = {
        "x": x,
        "dy": y,
        "partial": partial,
        "groups": problem.groups,
        "channels": channels,
        "filters": filters,
        "piece_steps": steps,
        **window_arguments(problem),
        "PRECISION": precision(problem),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    first = Launch(kernel, (blocks, pieces), arguments, tile.warps, tile.stages)
    return dw, [first, reduce.launch(partial, dw, (h.window, v.window), filter_strides(dw))]
