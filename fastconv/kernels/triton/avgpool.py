"""Average, adaptive average and global average pool, forward and backward.

Forward a block sums a tile of windows x channels in float, tap by tap, and divides once. Backward it gathers: every
input position adds the gradients of the windows that see it, each divided by its window's divisor, in a fixed order;
no scatter, no atomics. Bytes: what is read once where the cache keeps the rows of a window, what is written once.
Every stride and padding, ceil mode, count_include_pad, divisor_override; both layouts, vectors along the axis that
lies together.

It loses where few long windows make few blocks (a global pool at batch 1, and in NCHW, where a lane then walks along a
plane of its own). It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import windows
from fastconv.kernels.triton.common import image_row_column, narrow, offsets, rows_and_columns, widen
from fastconv.kernels.triton.launch import Launch, written
from fastconv.kernels.triton.windows import POOL_SIZES, divisor, pool_launch, tap_position, window_position
from fastconv.problem import Problem


def refuses(problem: Problem) -> str | None:
    return windows.refuses(problem)


@triton.jit(do_not_specialize=POOL_SIZES)
def kernel(
    source,
    out,
    images,
    channels,
    out_channels,
    height,
    width,
    out_height,
    out_width,
    pad_h,
    pad_w,
    end_h,
    end_w,
    slots_h,
    slots_w,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    PADDED: tl.constexpr,
    OVERRIDE: tl.constexpr,
    BACKWARD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out_channels: of the buffer the result is a slice of. end_h, end_w: padding behind the map.

    PADDED: the divisor counts the padding. OVERRIDE: the divisor, unless 0.
    """
    pixel, channel = rows_and_columns(tl.program_id(0), channels, BLOCK_M, BLOCK_N)
    channel = channel[None, :]
    if BACKWARD:
        rows = height
        columns = width
        source_rows = out_height
        source_columns = out_width
    else:
        rows = out_height
        columns = out_width
        source_rows = height
        source_columns = width
    all_inside = (pixel < images * rows * columns)[:, None] & (channel < channels)
    image, i, j = image_row_column(pixel[:, None], rows, columns)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for r in range(slots_h):
        if BACKWARD:
            h, row_inside = window_position(i, r, height, out_height, pad_h, STRIDE_H, DILATION_H, ADAPTIVE)
        else:
            h, row_inside = tap_position(i, r, height, out_height, pad_h, STRIDE_H, DILATION_H, ADAPTIVE)
        for s in range(slots_w):
            if BACKWARD:
                v, column_inside = window_position(j, s, width, out_width, pad_w, STRIDE_W, DILATION_W, ADAPTIVE)
            else:
                v, column_inside = tap_position(j, s, width, out_width, pad_w, STRIDE_W, DILATION_W, ADAPTIVE)
            inside = all_inside & row_inside & column_inside
            places = offsets(image, h, v, channel, source_rows, source_columns, channels, CHANNELS_LAST)
            value = widen(tl.load(source + places, mask=inside, other=0.0))
            if BACKWARD:
                count = divisor(
                    h, v, height, width, out_height, out_width, pad_h, pad_w, end_h, end_w,
                    R, S, STRIDE_H, STRIDE_W, ADAPTIVE, PADDED, OVERRIDE,
                )  # fmt: skip
                value = tl.math.div_rn(value, tl.broadcast_to(count, (BLOCK_M, BLOCK_N)))
            sums += value
    if not BACKWARD:
        count = divisor(
            i, j, height, width, out_height, out_width, pad_h, pad_w, end_h, end_w,
            R, S, STRIDE_H, STRIDE_W, ADAPTIVE, PADDED, OVERRIDE,
        )  # fmt: skip
        sums = tl.math.div_rn(sums, tl.broadcast_to(count, (BLOCK_M, BLOCK_N)))
    tl.store(
        out + offsets(image, i, j, channel, rows, columns, out_channels, CHANNELS_LAST),
        narrow(sums, out.dtype.element_ty),
        mask=all_inside,
    )


def plan(
    problem: Problem,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it."""
    h, v = problem.h, problem.w
    backward = problem.pass_ == "dgrad"
    source, size = (y, (h.size, v.size)) if backward else (x, (h.out, v.out))
    result = written(problem, source, (problem.n, problem.c, *size), out)
    extra = {
        "end_h": h.pad_hi,
        "end_w": v.pad_hi,
        "PADDED": problem.count_include_pad,
        "OVERRIDE": problem.divisor_override,
        "BACKWARD": backward,
    }
    return result if out is None else out, [
        pool_launch(problem, kernel, {"source": source, "out": result}, backward, **extra)
    ]
