"""Batch norm forward: inference in one pass, training in three, with residual and activation on the way.

Inference scales and shifts a tile of pixels x channels: x once, y once. Training first takes each piece of the pixels'
mean and sum of squared deviations, tile by tile (deviations from the tile's own mean, merged by Chan's formula, so a
large mean costs no digits), then merges the pieces in a fixed order in double, then applies: x twice, y once, no
atomics, the same bits in every run. Both layouts, vectors along the axis that lies together.

Training loses a third of its bytes to a kernel whose producer took the statistics already. It has not run on a GPU
yet: it is interpreted and compiled ahead of time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import activate, image_row_column, narrow, offsets, widen
from fastconv.kernels.triton.launch import SIZES, Launch, architecture_of, too_large, written
from fastconv.problem import Problem

WARPS = 4
ELEMENTS = 2048  # of a block
CHANNELS = 64  # of a block that merges pieces
LEAST_STEPS = 4  # tiles in a piece
VALUES = tl.constexpr(3)  # of a piece and channel: count, mean, sum of squared deviations
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
    """partial: [pieces, VALUES, channels] of count, mean and sum of squared deviations."""
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
        here = tl.sum(pixel_inside.to(tl.float32), axis=0)
        own = tl.sum(value, axis=0) / tl.maximum(here, 1.0)
        deviation = tl.where(inside, value - own[None, :], 0.0)
        together = tl.maximum(count + here, 1.0)
        apart = own - mean
        squares += tl.sum(deviation * deviation, axis=0) + apart * apart * (count * here / together)
        mean += apart * (here / together)
        count += here
    row = tl.program_id(1).to(tl.int64) * VALUES * channels + channel
    tl.store(partial + row, count, mask=channel_inside)
    tl.store(partial + row + channels, mean, mask=channel_inside)
    tl.store(partial + row + 2 * tl.cast(channels, tl.int64), squares, mask=channel_inside)


@triton.jit(do_not_specialize=["pieces"])
def merge(partial, stats, channels, pieces, BLOCK_N: tl.constexpr):
    """stats: [2, channels], mean and biased variance."""
    channel = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channel < channels
    count = tl.zeros((BLOCK_N,), dtype=tl.float64)
    mean = tl.zeros((BLOCK_N,), dtype=tl.float64)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float64)
    for piece in range(pieces):
        row = partial + tl.cast(piece, tl.int64) * VALUES * channels + channel
        here = tl.load(row, mask=inside, other=0.0).to(tl.float64)
        own = tl.load(row + channels, mask=inside, other=0.0).to(tl.float64)
        together = tl.maximum(count + here, 1.0)
        apart = own - mean
        squares += tl.load(row + 2 * tl.cast(channels, tl.int64), mask=inside, other=0.0).to(tl.float64)
        squares += apart * apart * (count * here / together)
        mean += apart * (here / together)
        count += here
    tl.store(stats + channel, mean.to(tl.float32), mask=inside)
    tl.store(stats + channels + channel, (squares / tl.maximum(count, 1.0)).to(tl.float32), mask=inside)


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
    tiles_n = tl.cdiv(channels, BLOCK_N)
    block = tl.program_id(0)
    pixel = (block // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    channel = block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel_inside = channel < channels
    inside = (pixel < images * height * width) & channel_inside[None, :]
    image, h, v = image_row_column(pixel, height, width)
    places = offsets(image, h, v, channel[None, :], height, width, channels, CHANNELS_LAST)
    value = widen(tl.load(x + places, mask=inside, other=0.0))
    if MEAN:
        value -= tl.load(mean + channel, mask=channel_inside, other=0.0)[None, :]
    scale = tl.math.div_rn(1.0, tl.math.sqrt_rn(tl.load(variance + channel, mask=channel_inside, other=1.0) + eps))
    if WEIGHT:
        scale *= tl.load(w + channel, mask=channel_inside, other=0.0)
    value *= scale[None, :]
    if BIAS:
        value += tl.load(bias + channel, mask=channel_inside, other=0.0)[None, :]
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
        partial = torch.empty(pieces, VALUES.value, problem.c, dtype=torch.float32, device=x.device)
        taken = {"x": x, "partial": partial, "piece_steps": steps, **sizes(problem, tile)}
        merged = {"partial": partial, "stats": stats, "channels": problem.c, "pieces": pieces, "BLOCK_N": CHANNELS}
        starts.append(Launch(statistics, (configure.cdiv(problem.c, tile.n), pieces), taken, WARPS))
        starts.append(Launch(merge, (configure.cdiv(problem.c, CHANNELS),), merged, 1))
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
