"""Max pool and adaptive max pool backward, gathered: every input position asks the windows that see it whether it was
their maximum, and adds their gradients in a fixed order.

A block computes a tile of input positions x channels. Bytes: dy and the index once where the cache keeps the rows of
overlapping windows, dx once; a scatter would clear dx first and need atomics. Index of one byte (the tap's number) or
of 64 bits (the position in the plane). Every stride, padding and dilation, both layouts.

It loses for windows much larger than the stride, where each position asks many windows. It has not run on a GPU yet:
it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import windows
from fastconv.kernels.triton.common import image_row_column, narrow, offsets, rows_and_columns, widen
from fastconv.kernels.triton.launch import Launch, written
from fastconv.kernels.triton.windows import ELEMENTS, POOL_SIZES, pool_launch, window_position
from fastconv.problem import Problem

# Results of a block beside 64-bit indices, in sliding and in adaptive windows: with more (and with 256 in sliding ones)
# ptxas 12.8 spills a predicate on sm_80 or sm_90 (compiled ahead, 2026-11).
SLIDING_ELEMENTS, ADAPTIVE_ELEMENTS = 512, 256


def refuses(problem: Problem) -> str | None:
    if problem.index == "none":
        return "It gathers by index, but the problem keeps none."
    return windows.refuses(problem)


@triton.jit(do_not_specialize=POOL_SIZES)
def kernel(
    dy,
    index,
    dx,
    images,
    channels,
    out_channels,
    height,
    width,
    out_height,
    out_width,
    pad_h,
    pad_w,
    slots_h,
    slots_w,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    INDEX: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """INDEX: "u8" or "i64". out_channels: as channels, for dx is dense."""
    pixel, channel = rows_and_columns(tl.program_id(0), channels, BLOCK_M, BLOCK_N)
    channel = channel[None, :]
    all_inside = (pixel < images * height * width)[:, None] & (channel < channels)
    image, h, v = image_row_column(pixel[:, None], height, width)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r in range(slots_h):
        p, row_inside = window_position(h, r, height, out_height, pad_h, STRIDE_H, DILATION_H, ADAPTIVE)
        for s in range(slots_w):
            q, column_inside = window_position(v, s, width, out_width, pad_w, STRIDE_W, DILATION_W, ADAPTIVE)
            inside = all_inside & row_inside & column_inside
            places = offsets(image, p, q, channel, out_height, out_width, channels, CHANNELS_LAST)
            place = tl.load(index + places, mask=inside, other=0).to(tl.int32)
            mine = place == (r * S + s) if INDEX == "u8" else place == h * width + v
            sums += widen(tl.load(dy + places, mask=inside & mine, other=0.0))
    tl.store(
        dx + offsets(image, h, v, channel, height, width, channels, CHANNELS_LAST),
        narrow(sums, dx.dtype.element_ty),
        mask=all_inside,
    )


def plan(
    problem: Problem, *, y: Tensor, index: Tensor, out: Tensor | None = None, architecture: int | None = None
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it."""
    dx = written(problem, y, (problem.n, problem.c, problem.h.size, problem.w.size), out)
    tensors = {"dy": y, "index": index, "dx": dx}
    indexed = ADAPTIVE_ELEMENTS if windows.is_adaptive(problem) else SLIDING_ELEMENTS
    elements = indexed if problem.index == "i64" else ELEMENTS
    return dx, [pool_launch(problem, kernel, tensors, True, elements, INDEX=problem.index)]
