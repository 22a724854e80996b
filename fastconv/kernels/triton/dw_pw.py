"""A depthwise convolution and the 1x1 behind it in one kernel, for inference:
y = act2(act1(x * d + b1) · w + b2 + residual).

A block computes a tile of pixels x filters of y. Along the depth it makes a tile [pixels, channels] of depthwise
results in registers, taps in order, with their bias and activation, rounds it to the storage type as a tensor in memory
would be, and multiplies it by the 1x1 filters. The depthwise result is never stored. Bytes: x once where the cache
keeps a window's rows, y once; apart, that result is written and read besides, which is 2 · N·P·Q·C of
N·(H·W·C + P·Q·(2 C + K)) elements.

Every block of columns makes the depthwise results anew, R·S products for each; so it loses where K is several blocks
of columns and the filter is large, and to a persistent product where C and K fill the matrix units. It has not run on a
GPU yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure, dw_map
from fastconv.kernels.triton.common import (
    activate,
    finish_map,
    image_row_column,
    narrow,
    product,
    rows_and_columns,
    widen,
)
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    architecture_of,
    epilogue_arguments,
    filter_strides,
    precision,
    too_large,
    window_arguments,
    written,
)
from fastconv.problem import Problem

DTYPES = ("f32", "tf32", "f16", "bf16")


def refuses(depthwise: Problem, pointwise: Problem) -> str | None:
    """Why the kernel does not compute ``pointwise`` of the result of ``depthwise``, or None."""
    if depthwise.dtype not in DTYPES:
        return f"It computes in float, but the problem is in {depthwise.dtype}."
    if not depthwise.is_depthwise:
        return f"It takes one channel a group, but C={depthwise.c} are in {depthwise.groups} groups."
    if not pointwise.is_pointwise or pointwise.groups > 1 or (pointwise.h.stride, pointwise.w.stride) != (1, 1):
        return f"The second convolution is 1x1 of stride 1 without padding and groups, not {pointwise}."
    if depthwise.residual or depthwise.out_channels:
        return f"Nothing of the depthwise result is added to or stored, but the problem is {depthwise}."
    made, read = (
        (depthwise.n, depthwise.k, depthwise.h.out, depthwise.w.out, depthwise.dtype, depthwise.layout),
        (pointwise.n, pointwise.c, pointwise.h.size, pointwise.w.size, pointwise.dtype, pointwise.layout),
    )
    if made != read:
        return f"The second convolution reads {read}, but the first makes {made}."
    return too_large(depthwise)


@triton.jit(do_not_specialize=[*SIZES, "depthwise_alpha"])
def kernel(
    source,
    w,
    depthwise_bias,
    filter,
    bias,
    residual,
    out,
    images,
    height,
    width,
    out_height,
    out_width,
    channels,
    columns,
    out_channels,
    pad_h,
    pad_w,
    w_k,
    w_c,
    w_r,
    w_s,
    filter_depth,
    filter_column,
    depthwise_alpha,
    alpha,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    DEPTHWISE_BIAS: tl.constexpr,
    DEPTHWISE_ACTIVATION: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """channels: C of x. MULTIPLIER: depthwise filters a channel. columns: filters of the 1x1."""
    pixel, column = rows_and_columns(tl.program_id(0), columns, BLOCK_M, BLOCK_N)
    pixel_inside = pixel < images * out_height * out_width
    column_inside = column < columns
    image, p, q = image_row_column(pixel, out_height, out_width)
    depth = channels * MULTIPLIER
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(tl.cdiv(depth, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        k_inside = k < depth
        made = dw_map.forward(
            source, w, image, p, q, k, pixel_inside, k_inside, height, width, channels, pad_h, pad_w,
            w_k, w_r, w_s, R, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W, MULTIPLIER, CHANNELS_LAST, BLOCK_M, BLOCK_K
        )  # fmt: skip
        if DEPTHWISE_BIAS:
            made += widen(tl.load(depthwise_bias + k, mask=k_inside, other=0.0))[None, :]
        a = narrow(activate(made, depthwise_alpha, DEPTHWISE_ACTIVATION), source.dtype.element_ty)
        weights = (k.to(tl.int64) * filter_depth)[:, None] + (column.to(tl.int64) * filter_column)[None, :]
        b = tl.load(filter + weights, mask=k_inside[:, None] & column_inside[None, :], other=0.0)
        sums = product(a, b, sums, PRECISION)
    finish_map(
        sums,
        out,
        bias,
        residual,
        image,
        p,
        q,
        column,
        pixel_inside,
        column_inside,
        out_height,
        out_width,
        columns,
        out_channels,
        alpha,
        CHANNELS_LAST,
        BIAS,
        RESIDUAL,
        ACTIVATION,
    )


def plan(
    depthwise: Problem,
    pointwise: Problem,
    *,
    x: Tensor,
    w: Tensor,
    filter: Tensor,
    depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it. w, depthwise_bias: of the depthwise convolution. filter: of the 1x1."""
    h, v = pointwise.h, pointwise.w
    columns = pointwise.k
    result = written(pointwise, x, (pointwise.n, columns, h.out, v.out), out)
    pixels = pointwise.n * h.out * v.out
    tile = configure.fused_tile(pointwise.dtype, pixels, columns, pointwise.c, architecture or architecture_of(x))
    arguments = {
        "source": x,
        "w": w,
        "depthwise_bias": x if depthwise_bias is None else depthwise_bias,
        "filter": filter,
        "channels": depthwise.c,
        "columns": columns,
        "filter_depth": filter.stride(1),
        "filter_column": filter.stride(0),
        "depthwise_alpha": float(depthwise.alpha),
        "MULTIPLIER": depthwise.k // depthwise.c,
        "DEPTHWISE_BIAS": depthwise_bias is not None,
        "DEPTHWISE_ACTIVATION": depthwise.activation,
        **filter_strides(w),
        **window_arguments(depthwise),
        **epilogue_arguments(pointwise, result, columns, bias, residual),
        "PRECISION": precision(pointwise),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    grid = (configure.cdiv(pixels, tile.m) * configure.cdiv(columns, tile.n),)
    return result if out is None else out, [Launch(kernel, grid, arguments, tile.warps)]
