"""1x1 convolution without padding as a plain matrix product: y[N·P·Q, K] = x[N·P·Q, C] · w[C, K], and its input
gradient of stride 1, which is the same product with the filter's axes exchanged.

A pixel is a row of the product: no tap, no mask but for the last pixels, whole vectors of channels. With a stride (or
a cropped edge) the rows of x are found by image, row and column. Bytes: x once for every ceil(K / BLOCK_N), y once,
with bias, residual and activation on the way and an optional channel slice as target; the filter stays in cache. At 64
to 512 channels these layers are bound by bytes, and the epilogue saves the most. Beside a training batch norm it takes
mean and variance of y as it stores (``moments``), and a norm before it is applied to each tile of x as it is loaded,
rounded as a tensor in memory would be: neither is a pass of its own, and the normalised x is never stored.

It loses for deep small maps, where a split of the depth would give more blocks, and in NCHW, whose rows lie across the
vectors. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure, moments, prologue
from fastconv.kernels.triton.common import finish, image_row_column, offsets, product, rows_and_columns
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    architecture_of,
    epilogue_arguments,
    precision,
    too_large,
    written,
)
from fastconv.problem import Problem


def refuses(problem: Problem) -> str | None:
    h, v = problem.h, problem.w
    if not problem.is_pointwise:
        padding = f"{h.pad_lo}:{h.pad_hi} x {v.pad_lo}:{v.pad_hi}"
        return f"It takes 1x1 filters without padding, but the filter is {h.window}x{v.window} padded by {padding}."
    if problem.groups > 1:
        return f"It takes one group, but the problem has {problem.groups}."
    if problem.pass_ == "dgrad" and (h.out, v.out) != (h.size, v.size):
        return (
            f"Its gradient has a source for every pixel, but {h.out}x{v.out} gradients meet {h.size}x{v.size} pixels."
        )
    return too_large(problem)


@triton.jit(do_not_specialize=[*SIZES, "eps", "norm_alpha"])
def kernel(
    source,
    filter,
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
    depth,
    columns,
    out_channels,
    filter_depth,
    filter_column,
    alpha,
    eps,
    norm_alpha,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    SAME: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MOMENTS: tl.constexpr,
    NORM: tl.constexpr,
    NORM_WEIGHT: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    NORM_ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """SAME: pixels of the source and of the result have the same numbers. depth, columns: channels read and written.

    partial: with MOMENTS those of y, a piece for every tile of pixels. NORM: the source is normalised on the way.
    """
    pixel, column = rows_and_columns(tl.program_id(0), columns, BLOCK_M, BLOCK_N)
    pixel_inside = pixel < images * out_height * out_width
    column_inside = column < columns
    image, p, q = image_row_column(pixel, out_height, out_width)
    if CHANNELS_LAST and SAME:
        rows = pixel.to(tl.int64) * depth
        results = (pixel.to(tl.int64) * out_channels)[:, None] + column[None, :]
        residuals = (pixel.to(tl.int64) * columns)[:, None] + column[None, :]
    else:
        rows = offsets(image, p * STRIDE_H, q * STRIDE_W, tl.zeros_like(p), height, width, depth, CHANNELS_LAST)
        results = offsets(
            image[:, None], p[:, None], q[:, None], column[None, :], out_height, out_width, out_channels, CHANNELS_LAST
        )
        residuals = offsets(
            image[:, None], p[:, None], q[:, None], column[None, :], out_height, out_width, columns, CHANNELS_LAST
        )
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    channel_stride = 1 if CHANNELS_LAST else tl.cast(height, tl.int64) * width
    for step in range(tl.cdiv(depth, BLOCK_K)):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        if EVEN:
            source_inside = pixel_inside[:, None]
            filter_inside = column_inside[None, :]
        else:
            source_inside = pixel_inside[:, None] & (k < depth)[None, :]
            filter_inside = (k < depth)[:, None] & column_inside[None, :]
        places = rows[:, None] + (k * channel_stride)[None, :]
        a = tl.load(source + places, mask=source_inside, other=0.0)
        if NORM:
            a = prologue.normalized(
                a,
                norm_weight,
                norm_bias,
                mean,
                variance,
                k,
                k < depth,
                eps,
                norm_alpha,
                NORM_WEIGHT,
                NORM_BIAS,
                NORM_ACTIVATION,
            )
        weights = (k.to(tl.int64) * filter_depth)[:, None] + (column.to(tl.int64) * filter_column)[None, :]
        b = tl.load(filter + weights, mask=filter_inside, other=0.0)
        sums = product(a, b, sums, PRECISION)
    y = finish(
        sums,
        out,
        bias,
        residual,
        results,
        residuals,
        column,
        pixel_inside[:, None] & column_inside[None, :],
        column_inside,
        alpha,
        BIAS,
        RESIDUAL,
        ACTIVATION,
    )
    if MOMENTS:
        pixel_tile = tl.program_id(0) // tl.cdiv(columns, BLOCK_N)
        moments.store_tile(y, partial, pixel_tile, column, pixel_inside, column_inside, columns)


def plan(
    problem: Problem,
    *,
    w: Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
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
    forward = problem.pass_ == "fprop"
    source = x if forward else y
    depth, columns = (problem.c, problem.k) if forward else (problem.k, problem.c)
    result = written(problem, source, (problem.n, columns, h.out, v.out), out)
    pixels = problem.n * h.out * v.out
    architecture = architecture or architecture_of(source)
    deepest = prologue.DEPTH if norm else configure.DEPTHS[-1]
    tile = configure.matrix_tile(problem.dtype, pixels, columns, depth, architecture, deepest=deepest)
    tiles = configure.cdiv(pixels, tile.m)
    partial, merges = moments.taken(stats, tiles)
    arguments = {
        "source": source,
        "filter": w,
        "images": problem.n,
        "height": h.size,
        "width": v.size,
        "out_height": h.out,
        "out_width": v.out,
        "depth": depth,
        "columns": columns,
        "filter_depth": w.stride(1 if forward else 0),
        "filter_column": w.stride(0 if forward else 1),
        "STRIDE_H": h.stride,
        "STRIDE_W": v.stride,
        "SAME": (h.size, v.size) == (h.out, v.out),
        "CHANNELS_LAST": problem.layout == "nhwc",
        **epilogue_arguments(problem, result, columns, bias, residual),
        "partial": result if partial is None else partial,
        "MOMENTS": partial is not None,
        **prologue.arguments(norm, source),
        "EVEN": depth % tile.k == 0,
        "PRECISION": precision(problem),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    start = Launch(kernel, (tiles * configure.cdiv(columns, tile.n),), arguments, tile.warps, tile.stages)
    return result if out is None else out, [start, *merges]
