"""conv2d wgrad as an implicit matrix product whose operands come through descriptors: dw[K, R·S, C] = dy^T · x, the
product of ``conv_wgrad`` for Hopper and later, where a descriptor is a TMA copy.

A step's pixels are a box of some images, rows and columns of dy [N, P, Q, K], and what one tap multiplies them by is
the same box of x at that tap, one copy each, at any stride that divides the map (``boxes``). Boxes divide dy's rows and
columns: one that went over its edge would multiply pixels of x by zero that may be infinite. Their sides are powers of
two, 8x8 of 56x56, 2x2 of 14x14 and 1x1 of 7x7, and the images of a batch make up the rest; each shape is a kernel. A
block computes BLOCK_M filters x BLOCK_N channels of one tap over one piece of the boxes; pieces are added by
``reduce``, in a fixed order and to the same bits in every run. Both operands lie with their pixels outside: of the left
one, dy, a thread turns 16-bit fragments as it loads them from shared memory, the right one is multiplied where it lies.
No thread computes an address or a mask for an operand. FLOPs and partial sums are those of ``conv_wgrad``; bytes are
too, dy once for every block of channels and x once for every block of filters, each tap's anew from the second-level
cache.

A descriptor needs channels_last, channels of whole 16 bytes and an aligned start. Channels are the problem's, and
refused; where a tensor starts only the call shows, and one that starts elsewhere is computed by ``conv_wgrad``, as
everything is before Hopper. TF32 is refused: its matrix instruction takes no transposed operand, so both would pass
through registers. It loses where P and Q have few twos and the batch few images, which then fill no box, and where C
fills no block. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

from dataclasses import replace
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import boxes, configure, conv_wgrad, reduce
from fastconv.kernels.triton.boxes import load_tap
from fastconv.kernels.triton.common import product
from fastconv.kernels.triton.launch import SIZES, Launch, architecture_of, filter_strides, precision
from fastconv.problem import Problem


def refuses(problem: Problem) -> str | None:
    if problem.dtype == "tf32":
        return "It multiplies transposed operands where they lie, which no matrix instruction does in tf32."
    return boxes.refuses(problem)


@triton.jit(do_not_specialize=[*SIZES, "piece_steps"])
def kernel(
    x,
    dy,
    partial,
    out_height,
    out_width,
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
    PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x: descriptor of a strided map, as in ``boxes``; dy: of one of stride 1. partial: [pieces, K, R, S, C].

    IMAGES, ROWS, COLUMNS: of a box of BLOCK_K pixels. piece_steps: boxes of a piece; what the last has too many lie
    behind the last image and are zero.
    """
    tiles_m = tl.cdiv(filters, BLOCK_M)
    tiles_n = tl.cdiv(channels, BLOCK_N)
    block = tl.program_id(0)
    piece = tl.program_id(1)
    first_filter = block % tiles_m * BLOCK_M
    first_channel = block // tiles_m % tiles_n * BLOCK_N
    tap = block // (tiles_m * tiles_n)
    boxes_w = out_width // COLUMNS
    boxes_h = out_height // ROWS
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for box in range(piece * piece_steps, (piece + 1) * piece_steps):
        image = box // (boxes_w * boxes_h) * IMAGES
        p = box // boxes_w % boxes_h * ROWS
        q = box % boxes_w * COLUMNS
        a = dy.load([image, p, 0, q, first_filter]).reshape(BLOCK_K, BLOCK_M)
        b = load_tap(
            x, tap, image, p, q, first_channel, channels, pad_h, pad_w, S, STRIDE_H, STRIDE_W, DILATION_H, DILATION_W
        )
        sums = product(a.T, b.reshape(BLOCK_K, BLOCK_N), sums, PRECISION)
    filter = first_filter + tl.arange(0, BLOCK_M)
    channel = first_channel + tl.arange(0, BLOCK_N)
    row = (piece.to(tl.int64) * filters + filter) * (R * S) + tap
    inside = (filter < filters)[:, None] & (channel < channels)[None, :]
    tl.store(partial + row[:, None] * channels + channel[None, :], sums, mask=inside)


def box_of(pixels: int, height: int, width: int) -> tuple[int, int, int]:
    """Images, rows and columns of the box of so many pixels, a power of two, that divides a map."""
    columns = gcd(width, pixels)
    rows = gcd(height, pixels // columns)
    return pixels // (rows * columns), rows, columns


def plan(
    problem: Problem, *, x: Tensor, y: Tensor, out: Tensor | None = None, architecture: int | None = None
) -> tuple[Tensor, list[Launch]]:
    """The result, and the two starts that write it: partial sums, and their sum."""
    h, v = problem.h, problem.w
    architecture = architecture or architecture_of(x)
    if not boxes.copies((x, y), architecture):
        return conv_wgrad.plan(problem, x=x, y=y, out=out, architecture=architecture)
    dw = x.new_empty(problem.k, problem.c, h.window, v.window) if out is None else out
    taps, pixels = h.window * v.window, problem.n * h.out * v.out
    tile = configure.matrix_tile(problem.dtype, problem.k, taps * problem.c, pixels, architecture)
    # The model numbers taps and channels together; a block has channels of one tap.
    tile = replace(tile, n=min(tile.n, max(configure.LEAST, configure.power(problem.c))))
    images, rows, columns = box = box_of(tile.k, h.out, v.out)
    count = configure.cdiv(problem.n, images) * (h.out // rows) * (v.out // columns)
    pieces = configure.splits(tile, problem.k, taps * problem.c, count * tile.k, architecture)
    piece_steps = configure.cdiv(count, pieces)
    pieces = configure.cdiv(count, piece_steps)
    tiles = configure.cdiv(problem.k, tile.m) * configure.cdiv(problem.c, tile.n) * taps
    partial = torch.empty(pieces, problem.k, h.window, v.window, problem.c, dtype=torch.float32, device=x.device)
    arguments = {
        "x": boxes.descriptor(x, (h.stride, v.stride), [*box, tile.n]),
        "dy": boxes.descriptor(y, (1, 1), [*box, tile.m]),
        "partial": partial,
        "out_height": h.out,
        "out_width": v.out,
        "channels": problem.c,
        "filters": problem.k,
        "pad_h": h.pad_lo,
        "pad_w": v.pad_lo,
        "piece_steps": piece_steps,
        "R": h.window,
        "S": v.window,
        "STRIDE_H": h.stride,
        "STRIDE_W": v.stride,
        "DILATION_H": h.dilation,
        "DILATION_W": v.dilation,
        "PRECISION": precision(problem),
        "IMAGES": images,
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }
    first = Launch(kernel, (tiles, pieces), arguments, tile.warps, tile.stages)
    return dw, [first, reduce.launch(partial, dw, (h.window, v.window), filter_strides(dw))]
