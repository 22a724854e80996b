"""What pools share: where windows begin and end, which windows see an input position, and their divisors."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.launch import MOST_BLOCKS, SIZES, Launch, too_large, window_arguments
from fastconv.problem import Problem

WARPS = 4
ELEMENTS = 1024  # results of a block
POOL_SIZES = (*SIZES, "slots_h", "slots_w", "end_h", "end_w")


@triton.jit
def tap_position(o, slot, size, out, pad, STRIDE: tl.constexpr, DILATION: tl.constexpr, ADAPTIVE: tl.constexpr):
    """Input position of the slot-th tap of window ``o`` along one axis, and whether there is one inside."""
    if ADAPTIVE:
        position = o * size // out + slot
        return position, position * out < (o + 1) * size
    else:
        position = o * STRIDE - pad + slot * DILATION
        return position, (position >= 0) & (position < size)


@triton.jit
def window_position(i, slot, size, out, pad, STRIDE: tl.constexpr, DILATION: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The slot-th window along one axis that could see input position ``i``, and whether it does.

    A sliding window sees it through tap ``slot``; adaptive windows are counted from the first that sees it.
    """
    if ADAPTIVE:
        o = i * out // size + slot
        return o, o * size < (i + 1) * out
    else:
        reach = i + pad - slot * DILATION
        o = reach // STRIDE
        return o, (reach >= 0) & (reach % STRIDE == 0) & (o < out)


@triton.jit
def axis_count(
    o, size, out, pad, pad_end, WINDOW: tl.constexpr, STRIDE: tl.constexpr, ADAPTIVE: tl.constexpr, PADDED: tl.constexpr
):
    """How many taps of window ``o`` an average divides by, along one axis."""
    if ADAPTIVE:
        count = ((o + 1) * size + out - 1) // out - o * size // out
    else:
        start = o * STRIDE - pad
        stop = tl.minimum(start + WINDOW, size + pad_end)
        count = stop - start if PADDED else tl.minimum(stop, size) - tl.maximum(start, 0)
    return count


@triton.jit
def divisor(
    p,
    q,
    height,
    width,
    out_height,
    out_width,
    pad_h,
    pad_w,
    end_h,
    end_w,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    ADAPTIVE: tl.constexpr,
    PADDED: tl.constexpr,
    OVERRIDE: tl.constexpr,
):
    """What the sum of window (p, q) is divided by, in float."""
    if OVERRIDE != 0:
        return (p * 0 + q * 0 + OVERRIDE).to(tl.float32)
    else:
        rows = axis_count(p, height, out_height, pad_h, end_h, R, STRIDE_H, ADAPTIVE, PADDED)
        columns = axis_count(q, width, out_width, pad_w, end_w, S, STRIDE_W, ADAPTIVE, PADDED)
        return tl.maximum(rows * columns, 1).to(tl.float32)


def refuses(problem: Problem) -> str | None:
    """What every pool refuses."""
    if problem.out_channels and problem.pass_ == "dgrad":
        return f"It writes dense gradients, not {problem.c} of a buffer's {problem.out_channels} channels."
    for axis in (problem.h, problem.w):
        if is_adaptive(problem) and (axis.size + axis.out) * max(axis.size, axis.out) > MOST_BLOCKS:
            return f"It places adaptive windows with 32 bits: {axis.size} positions into {axis.out} are too many."
    return too_large(problem)


def is_adaptive(problem: Problem) -> bool:
    return problem.op.startswith("adaptive")


def longest_window(size: int, out: int) -> int:
    """Taps of the longest of ``out`` adaptive windows over ``size`` positions."""
    return max(configure.cdiv((o + 1) * size, out) - o * size // out for o in range(out))


def slots(problem: Problem, backward: bool) -> dict[str, int]:
    """How many taps a window has at most along each axis; backward: how many windows may see one position."""
    pairs = []
    for axis in (problem.h, problem.w):
        if is_adaptive(problem):
            pairs.append(longest_window(axis.out, axis.size) if backward else longest_window(axis.size, axis.out))
        else:
            pairs.append(axis.window)
    return dict(zip(("slots_h", "slots_w"), pairs, strict=True))


def pool_launch(
    problem: Problem, kernel: Any, tensors: dict[str, Tensor], backward: bool, elements: int = ELEMENTS, **extra: Any
) -> Launch:
    """The start of a pool's kernel over what it writes: windows, or backward input positions.

    elements: results of a block.
    """
    h, v = problem.h, problem.w
    pixels = problem.n * (h.size * v.size if backward else h.out * v.out)
    tile = configure.map_tile(problem.dtype, pixels, problem.c, problem.layout == "nhwc", elements)
    arguments = {
        **tensors,
        "channels": problem.c,
        "out_channels": problem.out_channels or problem.c,
        **window_arguments(problem),
        **slots(problem, backward),
        "ADAPTIVE": is_adaptive(problem),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        **extra,
    }
    grid = (configure.cdiv(pixels, tile.m) * configure.cdiv(problem.c, tile.n),)
    return Launch(kernel, grid, arguments, WARPS)
