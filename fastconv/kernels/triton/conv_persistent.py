"""Convolution as a persistent implicit matrix product whose operands come through descriptors, and the input gradient
of stride 1, the same product with the taps mirrored: ``conv_fprop`` and ``conv_dgrad`` for Hopper and later, where a
descriptor is a TMA copy.

A tile's pixels are a box of some images, rows and columns, so the source of one tap is the same box of x [N, H, W, C]
moved by that tap, one copy; what it reaches outside the map comes as zeros, which is the padding. At a stride u x v the
same bytes are [N, H / u, u, W / v, v·C], where the pixels of one tap are neighbours again: a box whose third number is
the tap's row modulo u and whose channels begin at its column modulo v. The filter is read as [R·S, K, C]. The product
is y^T, filters · pixels: Triton 3.6 multiplies a box where it lies in shared memory only on the right of a matrix
instruction, and passes it through registers on the left. No thread computes an address or a mask for an operand. One
block for every multiprocessor walks over the tiles of y, columns first, and the next tile's first copies run beside the
stores of the last. Boxes have one of four shapes, whichever needs the fewest tiles: maps of 7x7 and 14x14 fill whole
ones across the images of a batch, a large map by itself. Bytes and FLOPs are those of ``conv_fprop``, limit arithmetic
for C, K of 128 and more. Stores go by address: they may be a channel slice, and residuals need those addresses.

A descriptor needs channels_last, also of the filter, channels of whole 16 bytes and an aligned start. Channels are the
problem's, and refused; how a tensor lies only the call shows, and one that lies otherwise is computed by ``conv_fprop``
or ``conv_dgrad``, as everything is before Hopper. A stride must divide the map, and one of columns needs C in whole
blocks of 16: a block that went on into the next pixel would multiply by zero what may be infinite. It loses where there
are fewer tiles than multiprocessors, where single small maps leave boxes half empty, and for few channels, which fill
no tile's depth. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

from dataclasses import replace
from math import gcd

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastconv.kernels.triton import boxes, configure, conv_dgrad, conv_fprop
from fastconv.kernels.triton.boxes import load_tap
from fastconv.kernels.triton.common import finish_map, product
from fastconv.kernels.triton.conv_persistent1x1 import FORCED_BLOCKS
from fastconv.kernels.triton.launch import (
    SIZES,
    Launch,
    architecture_of,
    epilogue_arguments,
    precision,
    written,
)
from fastconv.problem import Problem

# Rows and columns of a box; its images are the pixels of a tile divided by both. The earlier of two alike is taken.
BOXES = ((8, 16), (8, 8), (4, 4), (1, 1))


def refuses(problem: Problem) -> str | None:
    h, v = problem.h, problem.w
    if sentence := boxes.refuses(problem):
        return sentence
    if problem.pass_ == "dgrad" and (h.stride, v.stride) != (1, 1):
        return f"It writes neighbouring pixels, but the stride is {h.stride}x{v.stride}."
    if v.stride > 1 and problem.c % configure.LEAST:
        return f"At a stride of columns it copies whole blocks of {configure.LEAST} channels, but C={problem.c}."
    return None


@triton.jit(do_not_specialize=SIZES)
def kernel(
    source,
    filter,
    bias,
    residual,
    out,
    images,
    height,
    width,
    depth,
    columns,
    out_channels,
    pad_h,
    pad_w,
    alpha,
    FORWARD: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """source: descriptor of a map, as in ``boxes``. filter: descriptor of [R·S, K, C], of which dgrad's depth is K.

    images, height, width: of the map that is written; columns: its channels, BLOCK_M of a tile. ROWS, COLUMNS: of a
    box, whose pixels are BLOCK_N.
    """
    IMAGES: tl.constexpr = BLOCK_N // (ROWS * COLUMNS)
    tiles_m = tl.cdiv(columns, BLOCK_M)
    tiles_w = tl.cdiv(width, COLUMNS)
    tiles_h = tl.cdiv(height, ROWS)
    tiles = tl.cdiv(images, IMAGES) * tiles_h * tiles_w * tiles_m
    blocks = tl.cdiv(depth, BLOCK_K)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        box = tile // tiles_m
        first_column = tile % tiles_m * BLOCK_M
        first_image = box // (tiles_w * tiles_h) * IMAGES
        first_p = box // tiles_w % tiles_h * ROWS
        first_q = box % tiles_w * COLUMNS
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(R * S * blocks):
            tap = step // blocks
            k = step % blocks * BLOCK_K
            if FORWARD:
                b = load_tap(
                    source,
                    tap,
                    first_image,
                    first_p,
                    first_q,
                    k,
                    depth,
                    pad_h,
                    pad_w,
                    S,
                    STRIDE_H,
                    STRIDE_W,
                    DILATION_H,
                    DILATION_W,
                )
                a = filter.load([tap, first_column, k]).reshape(BLOCK_M, BLOCK_K)
            else:
                h = first_p + pad_h - tap // S * DILATION_H
                v = first_q + pad_w - tap % S * DILATION_W
                b = source.load([first_image, h, 0, v, k])
                a = filter.load([tap, k, first_column]).reshape(BLOCK_K, BLOCK_M).T
            b = b.reshape(BLOCK_N, BLOCK_K).T
            sums = product(a, b, sums, PRECISION)
        pixel = tl.arange(0, BLOCK_N)
        image = first_image + pixel // (ROWS * COLUMNS)
        p = first_p + pixel // COLUMNS % ROWS
        q = first_q + pixel % COLUMNS
        column = first_column + tl.arange(0, BLOCK_M)
        finish_map(
            sums.T,
            out,
            bias,
            residual,
            image,
            p,
            q,
            column,
            (image < images) & (p < height) & (q < width),
            column < columns,
            height,
            width,
            columns,
            out_channels,
            alpha,
            True,
            BIAS,
            RESIDUAL,
            ACTIVATION,
        )


def box_of(pixels: int, images: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the box whose tiles of so many pixels are the fewest."""
    fit = [(rows, columns) for rows, columns in BOXES if rows * columns <= pixels]
    return min(fit, key=lambda box: tiles_of(pixels, images, height, width, box))


def tiles_of(pixels: int, images: int, height: int, width: int, box: tuple[int, int]) -> int:
    """Tiles of the map."""
    rows, columns = box
    across = configure.cdiv(images, pixels // (rows * columns))
    return across * configure.cdiv(height, rows) * configure.cdiv(width, columns)


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
    h, v = problem.h, problem.w
    forward = problem.pass_ == "fprop"
    source = x if forward else y
    architecture = architecture or architecture_of(source)
    taps = h.window * v.window
    dense = w.permute(0, 2, 3, 1).is_contiguous()
    if not (dense and boxes.copies((source, w), architecture)):
        operands = {"x": x} if forward else {"y": y}
        operands |= {"w": w, "bias": bias, "residual": residual, "out": out, "architecture": architecture}
        return (conv_fprop if forward else conv_dgrad).plan(problem, **operands)
    depth, columns = (problem.c, problem.k) if forward else (problem.k, problem.c)
    height, width = (h.out, v.out) if forward else (h.size, v.size)
    result = written(problem, source, (problem.n, columns, height, width), out)
    tile = configure.matrix_tile(problem.dtype, columns, problem.n * height * width, taps * depth, architecture)
    if v.stride > 1:
        # A block of channels ends where those of the next pixel begin.
        tile = replace(tile, k=gcd(tile.k, depth))
    rows, box_columns = box = box_of(tile.n, problem.n, height, width)
    block = [1, tile.m, tile.k] if forward else [1, tile.k, tile.m]
    arguments = {
        "source": boxes.descriptor(
            source, (h.stride, v.stride), [tile.n // (rows * box_columns), rows, box_columns, tile.k]
        ),
        "filter": TensorDescriptor(w, [taps, problem.k, problem.c], [problem.c, taps * problem.c, 1], block),
        "images": problem.n,
        "height": height,
        "width": width,
        "depth": depth,
        "columns": columns,
        "pad_h": h.pad_lo,
        "pad_w": v.pad_lo,
        "FORWARD": forward,
        "R": h.window,
        "S": v.window,
        "STRIDE_H": h.stride,
        "STRIDE_W": v.stride,
        "DILATION_H": h.dilation,
        "DILATION_W": v.dilation,
        **epilogue_arguments(problem, result, columns, bias, residual),
        "PRECISION": precision(problem),
        "ROWS": rows,
        "COLUMNS": box_columns,
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    most = FORCED_BLOCKS if configure.is_forced() else configure.machine(architecture).multiprocessors
    tiles = tiles_of(tile.n, problem.n, height, width, box) * configure.cdiv(columns, tile.m)
    return result if out is None else out, [Launch(kernel, (min(most, tiles),), arguments, tile.warps, tile.stages)]
