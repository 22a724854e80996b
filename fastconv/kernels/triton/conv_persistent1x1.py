"""1x1 convolution of stride 1 as a persistent matrix product whose operands come through descriptors: the product of
``conv_gemm1x1`` for Hopper and later, where a descriptor is a TMA copy.

One block for every multiprocessor walks over the tiles of y, columns first, so that a tile's pixels come from the
second-level cache for all but its first columns. No thread computes an address or a mask for an operand: the copy
fills what lies outside with zeros, and the next tile's first copies run beside the stores of the last. Bytes and FLOPs
are those of ``conv_gemm1x1``, limit bytes for C, K of 64 to 512. Stores go by address: they may be a channel slice, and
residuals need those addresses.

A descriptor needs channels_last, rows of whole 16 bytes and an aligned start. Rows are the problem's, and refused;
where a tensor starts only the call shows, and one that starts elsewhere is computed by ``conv_gemm1x1``, as everything
is before Hopper. It loses where there are fewer tiles than multiprocessors. It has not run on a GPU yet: it is
interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastconv.kernels.triton import boxes, configure, conv_gemm1x1
from fastconv.kernels.triton.common import finish, product
from fastconv.kernels.triton.launch import (
    Launch,
    architecture_of,
    epilogue_arguments,
    precision,
    written,
)
from fastconv.problem import Problem

FORCED_BLOCKS = 2  # with a forced tile, so that a small problem's blocks walk over several


def refuses(problem: Problem) -> str | None:
    if sentence := conv_gemm1x1.refuses(problem):
        return sentence
    h, v = problem.h, problem.w
    if (h.out, v.out) != (h.size, v.size):
        return f"It reads pixels in their order, but {h.size}x{v.size} of them become {h.out}x{v.out}."
    return boxes.refuses_pixels(problem)


@triton.jit(do_not_specialize=["pixels", "alpha"])
def kernel(
    source,
    filter,
    bias,
    residual,
    out,
    pixels,
    depth,
    columns,
    out_channels,
    alpha,
    FORWARD: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """source: descriptor of [pixels, depth]. filter: descriptor of [K, C], which dgrad reads as [depth, columns]."""
    tiles_n = tl.cdiv(columns, BLOCK_N)
    tiles = tl.cdiv(pixels, BLOCK_M) * tiles_n
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_pixel = tile // tiles_n * BLOCK_M
        first_column = tile % tiles_n * BLOCK_N
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(tl.cdiv(depth, BLOCK_K)):
            a = source.load([first_pixel, step * BLOCK_K])
            if FORWARD:
                b = filter.load([first_column, step * BLOCK_K]).T
            else:
                b = filter.load([step * BLOCK_K, first_column])
            sums = product(a, b, sums, PRECISION)
        pixel = first_pixel + tl.arange(0, BLOCK_M)
        column = first_column + tl.arange(0, BLOCK_N)
        column_inside = column < columns
        rows = pixel.to(tl.int64)[:, None]
        finish(
            sums,
            out,
            bias,
            residual,
            rows * out_channels + column[None, :],
            rows * columns + column[None, :],
            column,
            (pixel < pixels)[:, None] & column_inside[None, :],
            column_inside,
            alpha,
            BIAS,
            RESIDUAL,
            ACTIVATION,
        )


def plan(
    problem: Problem,
    *,
    w: Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it."""
    forward = problem.pass_ == "fprop"
    source = x if forward else y
    architecture = architecture or architecture_of(source)
    dense = w.stride(1) == 1 and w.stride(0) == problem.c
    if not (dense and boxes.copies((source, w), architecture)):
        return conv_gemm1x1.plan(
            problem, w=w, x=x, y=y, bias=bias, residual=residual, out=out, architecture=architecture
        )
    depth, columns = (problem.c, problem.k) if forward else (problem.k, problem.c)
    h, v = problem.h, problem.w
    result = written(problem, source, (problem.n, columns, h.out, v.out), out)
    pixels = problem.n * h.out * v.out
    tile = configure.matrix_tile(problem.dtype, pixels, columns, depth, architecture)
    block = [tile.n, tile.k] if forward else [tile.k, tile.n]
    arguments = {
        "source": TensorDescriptor(source, [pixels, depth], [depth, 1], [tile.m, tile.k]),
        "filter": TensorDescriptor(w, [problem.k, problem.c], [problem.c, 1], block),
        "pixels": pixels,
        "depth": depth,
        "columns": columns,
        "FORWARD": forward,
        **epilogue_arguments(problem, result, columns, bias, residual),
        "PRECISION": precision(problem),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    most = FORCED_BLOCKS if configure.is_forced() else configure.machine(architecture).multiprocessors
    grid = (min(most, configure.cdiv(pixels, tile.m) * configure.cdiv(columns, tile.n)),)
    return result if out is None else out, [Launch(kernel, grid, arguments, tile.warps, tile.stages)]
