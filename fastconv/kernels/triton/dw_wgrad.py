"""Depthwise wgrad: dw[k, r, s] = sum over the pixels of dy[pixel, k] · x[pixel · stride + tap, k / M].

A block holds sums of pixels x taps x filters in registers and walks over its piece of the pixels: dy is read once for
all its taps, x comes from the first-level cache for all but the first tap. At the end the pixels of a block are added,
and the pieces' partial sums by ``reduce`` in a fixed order: no atomics, the same bits in every run. Bytes: x and dy
once for each block of taps, and 8 · pieces · K·R·S for the partial sums. Any filter size, stride and dilation; both
layouts.

It loses where taps are just above a power of two (lanes stand empty). It has not run on a GPU yet: it is interpreted
and compiled ahead of time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure, reduce
from fastconv.kernels.triton.common import image_row_column, offsets, widen
from fastconv.kernels.triton.configure import Tile
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    architecture_of,
    filter_strides,
    too_large,
    window_arguments,
)
from fastconv.problem import Problem

WARPS = 4
SUMS = 4096  # of a block: 32 registers a thread
MOST_TAPS = 16  # of a block
LEAST_STEPS = 8  # blocks of pixels in a piece: shorter ones spend their time on starting and storing


def refuses(problem: Problem) -> str | None:
    if not problem.is_depthwise:
        return f"It takes one channel a group, but the problem has C={problem.c} in {problem.groups} groups."
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
    pad_h,
    pad_w,
    piece_steps,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial: [pieces, K, R, S]. channels: C. MULTIPLIER: filters a channel."""
    filters = channels * MULTIPLIER
    tiles_n = tl.cdiv(filters, BLOCK_N)
    block = tl.program_id(0)
    filter = block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tap = block // tiles_n * BLOCK_T + tl.arange(0, BLOCK_T)
    filter_inside = filter < filters
    tap_inside = tap < R * S
    r = (tap // S * DILATION_H - pad_h)[None, :, None]
    s = (tap % S * DILATION_W - pad_w)[None, :, None]
    read = (filter // MULTIPLIER)[None, None, :]
    lanes_inside = tap_inside[None, :, None] & filter_inside[None, None, :]
    pixels = images * out_height * out_width
    first = tl.program_id(1) * piece_steps
    sums = tl.zeros((BLOCK_M, BLOCK_T, BLOCK_N), dtype=tl.float32)
    for step in range(piece_steps):
        pixel = (first + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        pixel_inside = pixel < pixels
        image, p, q = image_row_column(pixel, out_height, out_width)
        gradients = offsets(
            image[:, None], p[:, None], q[:, None], filter[None, :], out_height, out_width, filters, CHANNELS_LAST
        )
        d = tl.load(dy + gradients, mask=pixel_inside[:, None] & filter_inside[None, :], other=0.0)
        h = (p * STRIDE_H)[:, None, None] + r
        v = (q * STRIDE_W)[:, None, None] + s
        inside = pixel_inside[:, None, None] & lanes_inside & (h >= 0) & (h < height) & (v >= 0) & (v < width)
        inputs = offsets(image[:, None, None], h, v, read, height, width, channels, CHANNELS_LAST)
        sums += widen(tl.load(x + inputs, mask=inside, other=0.0)) * widen(d)[:, None, :]
    total = tl.sum(sums, axis=0)
    rows = (tl.program_id(1).to(tl.int64) * filters + filter)[None, :] * (R * S) + tap[:, None]
    tl.store(partial + rows, total, mask=tap_inside[:, None] & filter_inside[None, :])


def plan(
    problem: Problem, *, x: Tensor, y: Tensor, out: Tensor | None = None, architecture: int | None = None
) -> tuple[Tensor, list[Launch]]:
    """The result, and the two starts that write it: partial sums, and their sum."""
    h, v = problem.h, problem.w
    dw = x.new_empty(problem.k, 1, h.window, v.window) if out is None else out
    taps, pixels = h.window * v.window, problem.n * h.out * v.out
    block_taps = min(MOST_TAPS, configure.power(taps))
    tile = configure.map_tile(problem.dtype, pixels, problem.k, problem.layout == "nhwc", SUMS // block_taps)
    blocks = configure.cdiv(problem.k, tile.n) * configure.cdiv(taps, block_taps)
    steps, pieces = _pieces(tile, blocks, pixels, architecture or architecture_of(x))
    partial = torch.empty(pieces, problem.k, h.window, v.window, 1, dtype=torch.float32, device=x.device)
    arguments = {
        "x": x,
        "dy": y,
        "partial": partial,
        "channels": problem.c,
        "piece_steps": steps,
        **window_arguments(problem),
        "MULTIPLIER": problem.k // problem.c,
        "BLOCK_M": tile.m,
        "BLOCK_T": block_taps,
        "BLOCK_N": tile.n,
    }
    first = Launch(kernel, (blocks, pieces), arguments, WARPS)
    return dw, [first, reduce.launch(partial, dw, (h.window, v.window), filter_strides(dw))]


def _pieces(tile: Tile, blocks: int, pixels: int, architecture: int) -> tuple[int, int]:
    """Blocks of pixels in a piece, and pieces: enough for four blocks on every multiprocessor."""
    steps = configure.cdiv(pixels, tile.m)
    wanted = configure.cdiv(4 * configure.machine(architecture).multiprocessors, blocks)
    least = 1 if configure.is_forced() else LEAST_STEPS
    piece = max(least, configure.cdiv(steps, wanted))
    return piece, configure.cdiv(steps, piece)
