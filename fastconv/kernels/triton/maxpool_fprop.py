"""Max pool and adaptive max pool forward, with the places of the maxima in one byte (the tap's number), in 64 bits
(the position in the plane) or not at all.

A block computes a tile of windows x channels: the taps one after another in row-major order, the largest value and its
place in registers. A value replaces the maximum when it is greater or NaN, as in PyTorch. Bytes: x once where the
cache keeps a window's rows, y and the index once. Every stride, padding and dilation, ceil mode, both layouts, vectors
along the axis that lies together.

It loses where few long windows make few blocks (a global pool at batch 1). It has not run on a GPU yet: it is
interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import windows
from fastconv.kernels.triton.common import image_row_column, narrow, offsets, rows_and_columns, widen
from fastconv.kernels.triton.launch import Launch, written
from fastconv.kernels.triton.windows import POOL_SIZES, pool_launch, tap_position
from fastconv.problem import Problem

BYTE_TAPS = 255  # that one byte can number


def refuses(problem: Problem) -> str | None:
    taps = problem.h.window * problem.w.window
    if problem.index == "u8" and taps > BYTE_TAPS:
        return f"One byte numbers {BYTE_TAPS} taps at most, but R·S={taps}."
    return windows.refuses(problem)


@triton.jit(do_not_specialize=POOL_SIZES)
def kernel(
    x,
    y,
    index,
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
    """INDEX: "none", "u8" or "i64". out_channels: of the buffer y is a slice of; the index is dense."""
    pixel, channel = rows_and_columns(tl.program_id(0), channels, BLOCK_M, BLOCK_N)
    channel = channel[None, :]
    all_inside = (pixel < images * out_height * out_width)[:, None] & (channel < channels)
    image, p, q = image_row_column(pixel[:, None], out_height, out_width)
    best = tl.full((BLOCK_M, BLOCK_N), float("-inf"), dtype=tl.float32)
    place = tl.full((BLOCK_M, BLOCK_N), -1, dtype=tl.int32)
    for r in range(slots_h):
        h, row_inside = tap_position(p, r, height, out_height, pad_h, STRIDE_H, DILATION_H, ADAPTIVE)
        for s in range(slots_w):
            v, column_inside = tap_position(q, s, width, out_width, pad_w, STRIDE_W, DILATION_W, ADAPTIVE)
            inside = all_inside & row_inside & column_inside
            value = widen(
                tl.load(
                    x + offsets(image, h, v, channel, height, width, channels, CHANNELS_LAST), mask=inside, other=0.0
                )
            )
            if INDEX == "u8":
                number = tl.full((BLOCK_M, BLOCK_N), 0, dtype=tl.int32) + (r * S + s)
            else:
                number = tl.broadcast_to(h * width + v, (BLOCK_M, BLOCK_N))
            take = inside & ((place < 0) | (value > best) | (value != value))
            best = tl.where(take, value, best)
            place = tl.where(take, number, place)
    results = offsets(image, p, q, channel, out_height, out_width, out_channels, CHANNELS_LAST)
    tl.store(y + results, narrow(best, y.dtype.element_ty), mask=all_inside)
    if INDEX != "none":
        places = offsets(image, p, q, channel, out_height, out_width, channels, CHANNELS_LAST)
        # A window without any element has no place; its index must still be one.
        tl.store(index + places, tl.maximum(place, 0).to(index.dtype.element_ty), mask=all_inside)


def plan(
    problem: Problem,
    *,
    x: Tensor,
    index: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it and ``index``."""
    y = written(problem, x, (problem.n, problem.c, problem.h.out, problem.w.out), out)
    tensors = {"x": x, "y": y, "index": y if index is None else index}  # without one nobody reads the pointer
    return y if out is None else out, [
        pool_launch(problem, kernel, tensors, False, INDEX="none" if index is None else problem.index)
    ]
