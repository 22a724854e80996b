"""Batch norm forward: inference in one pass, training in three, with residual and activation on the way.

Inference scales and shifts a tile of pixels x channels: x once, y once. Training first takes each piece of the pixels'
mean and sum of squared deviations, then merges the pieces (``moments``), then applies: x twice, y once, no atomics, the
same bits in every run. Both layouts, vectors along the axis that lies together.

Training behind a convolution that takes the statistics as it stores (``conv_fprop``, ``conv_gemm1x1``) saves a third of
these bytes. It has not run on a GPU
yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure, moments
from fastconv.kernels.triton.common import (
    activate,
    image_row_column,
    narrow,
    normalize,
    offsets,
    rows_and_columns,
    widen,
)
from fastconv.kernels.triton.launch import SIZES, Launch, architecture_of, too_large, written
from fastconv.problem import Problem

WARPS = 4
ELEMENTS = 2048  # of a block
LEAST_STEPS = 4  # tiles in a piece
EPS = 1e-5  # where a caller gives none


def refuses(problem: Problem) -> str | None:
    return too_large(problem)


@triton.jit(do_not_specialize=[*SIZES, "piece_steps"])
def statistics(
    x,
    partial,
    images,
    height,
    width,
    channels,
    piece_steps,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """partial: see ``moments``."""
    channel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_inside = channel < channels
    pixels = images * height * width
    first = tl.program_id(1) * piece_steps
    count = tl.zeros((BLOCK_N,), dtype=tl.float32)
    mean = tl.zeros((BLOCK_N,), dtype=tl.float32)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for step in range(piece_steps):
        pixel = (first + step) * BLOCK_M + tl.arange(0, BLOCK_M)
        image, h, v = image_row_column(pixel[:, None], height, width)
        pixel_inside = (pixel < pixels)[:, None]
        inside = pixel_inside & channel_inside[None, :]
        places = offsets(image, h, v, channel[None, :], height, width, channels, CHANNELS_LAST)
        value = widen(tl.load(x + places, mask=inside, other=0.0))
        more, its_mean, its_squares = moments.of_tile(value, pixel_inside, inside)
        count, mean, squares = moments.join(count, mean, squares, more, its_mean, its_squares)
    moments.store(partial, tl.program_id(1), count, mean, squares, channel, channel_inside, channels)


@triton.jit(do_not_specialize=[*SIZES, "eps"])
def apply(
    x,
    w,
    bias,
    mean,
    variance,
    residual,
    y,
    images,
    height,
    width,
    channels,
    out_channels,
    eps,
    alpha,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    MEAN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out_channels: of the buffer y is a slice of."""
    pixel, channel = rows_and_columns(tl.program_id(0), channels, BLOCK_M, BLOCK_N)
    pixel = pixel[:, None]
    channel_inside = channel < channels
    inside = (pixel < images * height * width) & channel_inside[None, :]
    image, h, v = image_row_column(pixel, height, width)
    places = offsets(image, h, v, channel[None, :], height, width, channels, CHANNELS_LAST)
    value = widen(tl.load(x + places, mask=inside, other=0.0))
    value = normalize(value, w, bias, mean, variance, channel, channel_inside, eps, WEIGHT, BIAS, MEAN)
    if RESIDUAL:
        value += widen(tl.load(residual + places, mask=inside, other=0.0))
    value = activate(value, alpha, ACTIVATION)
    results = offsets(image, h, v, channel[None, :], height, width, out_channels, CHANNELS_LAST)
    tl.store(y + results, narrow(value, y.dtype.element_ty), mask=inside)


def pieces_of(problem: Problem, tile: configure.Tile, architecture: int) -> tuple[int, int]:
    """Tiles in a piece, and pieces: enough for four blocks on every multiprocessor."""
    steps = configure.cdiv(problem.n * problem.h.size * problem.w.size, tile.m)
    wanted = configure.cdiv(4 * configure.machine(architecture).multiprocessors, configure.cdiv(problem.c, tile.n))
    piece = max(1 if configure.is_forced() else LEAST_STEPS, configure.cdiv(steps, wanted))
    return piece, configure.cdiv(steps, piece)


def tile_of(problem: Problem) -> configure.Tile:
    pixels = problem.n * problem.h.size * problem.w.size
    return configure.map_tile(problem.dtype, pixels, problem.c, problem.layout == "nhwc", ELEMENTS)


def sizes(problem: Problem, tile: configure.Tile) -> dict[str, object]:
    """What every kernel of a norm takes."""
    return {
        "images": problem.n,
        "height": problem.h.size,
        "width": problem.w.size,
        "channels": problem.c,
        "CHANNELS_LAST": problem.layout == "nhwc",
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
    }


def plan(
    problem: Problem,
    *,
    x: Tensor,
    w: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    residual: Tensor | None = None,
    stats: Tensor | None = None,
    eps: float = EPS,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the starts that write it and, in training, ``stats``."""
    y = written(problem, x, (problem.n, problem.c, problem.h.size, problem.w.size), out)
    tile = tile_of(problem)
    starts = []
    if problem.training:
        steps, pieces = pieces_of(problem, tile, architecture or architecture_of(x))
        partial = moments.room(pieces, problem.c, x.device)
        taken = {"x": x, "partial": partial, "piece_steps": steps, **sizes(problem, tile)}
        starts.append(Launch(statistics, (configure.cdiv(problem.c, tile.n), pieces), taken, WARPS))
        starts += moments.merges(partial, stats)
        mean, variance = stats[0], stats[1]
    arguments = {
        "x": x,
        "w": variance if w is None else w,
        "bias": variance if bias is None else bias,
        "mean": variance if mean is None else mean,
        "variance": variance,
        "residual": x if residual is None else residual,
        "y": y,
        "out_channels": problem.out_channels or problem.c,
        "eps": float(eps),
        "alpha": float(problem.alpha),
        "WEIGHT": w is not None,
        "BIAS": bias is not None,
        "MEAN": mean is not None,
        "RESIDUAL": residual is not None,
        "ACTIVATION": problem.activation,
        **sizes(problem, tile),
    }
    blocks = configure.cdiv(problem.n * problem.h.size * problem.w.size, tile.m) * configure.cdiv(problem.c, tile.n)
    starts.append(Launch(apply, (blocks,), arguments, WARPS))
    return y if out is None else out, starts
