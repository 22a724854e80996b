"""What batch norm knows of a channel: count, mean and sum of squared deviations, taken tile by tile, merged in order.

A tile's deviations are from its own mean, and two pieces are joined by the formula of Chan, Golub and LeVeque
("Updating formulae and a pairwise algorithm for computing sample variances", 1979), so a large mean costs no digits.
The pieces are merged in double, in the order of their numbers, in as many levels as short loops need: no atomics, the
same bits in every run. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import widen
from fastconv.kernels.triton.launch import Launch

CHANNELS = 64  # of a block that merges pieces
MOST_MERGED = 64  # pieces that one block merges
VALUES = tl.constexpr(3)  # of a piece and channel: count, mean, sum of squared deviations


@triton.jit
def of_tile(value, pixel_inside, inside):
    """Of a tile [pixels, channels] in float; pixel_inside: [pixels, 1]. What is outside is 0 or finite."""
    count = tl.sum(pixel_inside.to(tl.float32), axis=0)
    value = tl.where(inside, value, 0.0)
    mean = tl.sum(value, axis=0) / tl.maximum(count, 1.0)
    deviation = tl.where(inside, value - mean[None, :], 0.0)
    return count, mean, tl.sum(deviation * deviation, axis=0)


@triton.jit
def join(count, mean, squares, more, its_mean, its_squares):
    """Of two pieces together, in the type they have."""
    together = tl.maximum(count + more, 1.0)
    apart = its_mean - mean
    squares += its_squares + apart * apart * (count * more / together)
    mean += apart * (more / together)
    return count + more, mean, squares


@triton.jit
def store(partial, piece, count, mean, squares, channel, channel_inside, channels):
    """partial: [pieces, VALUES, channels]."""
    row = tl.cast(piece, tl.int64) * VALUES * channels + channel
    tl.store(partial + row, count, mask=channel_inside)
    tl.store(partial + row + channels, mean, mask=channel_inside)
    tl.store(partial + row + 2 * tl.cast(channels, tl.int64), squares, mask=channel_inside)


@triton.jit
def store_tile(y, partial, piece, channel, pixel_inside, channel_inside, channels):
    """The piece of a tile [pixels, channels] as it was stored, rounded: the last step of an epilogue."""
    inside = pixel_inside[:, None] & channel_inside[None, :]
    count, mean, squares = of_tile(widen(y), pixel_inside[:, None], inside)
    store(partial, piece, tl.zeros_like(mean) + count, mean, squares, channel, channel_inside, channels)


@triton.jit(do_not_specialize=["pieces"])
def merge(partial, merged, channels, pieces, FINAL: tl.constexpr, MOST: tl.constexpr, BLOCK_N: tl.constexpr):
    """merged: [ceil(pieces / MOST), VALUES, channels]; FINAL: of all, [2, channels], mean and biased variance."""
    channel = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channel < channels
    count = tl.zeros((BLOCK_N,), dtype=tl.float64)
    mean = tl.zeros((BLOCK_N,), dtype=tl.float64)
    squares = tl.zeros((BLOCK_N,), dtype=tl.float64)
    first = tl.program_id(1) * MOST
    for piece in range(first, tl.minimum(first + MOST, pieces)):
        row = partial + tl.cast(piece, tl.int64) * VALUES * channels + channel
        more = tl.load(row, mask=inside, other=0.0).to(tl.float64)
        its_mean = tl.load(row + channels, mask=inside, other=0.0).to(tl.float64)
        its_squares = tl.load(row + 2 * tl.cast(channels, tl.int64), mask=inside, other=0.0).to(tl.float64)
        count, mean, squares = join(count, mean, squares, more, its_mean, its_squares)
    if FINAL:
        tl.store(merged + channel, mean.to(tl.float32), mask=inside)
        tl.store(merged + channels + channel, (squares / tl.maximum(count, 1.0)).to(tl.float32), mask=inside)
    else:
        mean, squares = mean.to(tl.float32), squares.to(tl.float32)
        store(merged, tl.program_id(1), count.to(tl.float32), mean, squares, channel, inside, channels)


def room(pieces: int, channels: int, device: torch.device) -> Tensor:
    """Room for what ``store`` writes."""
    return torch.empty(pieces, VALUES.value, channels, dtype=torch.float32, device=device)


def merges(partial: Tensor, stats: Tensor) -> list[Launch]:
    """The starts that write mean and biased variance of all pieces into ``stats``, (2, channels) in float."""
    starts = []
    final = False
    while not final:
        pieces, _, channels = partial.shape
        groups = configure.cdiv(pieces, MOST_MERGED)
        final = groups <= 1
        merged = stats if final else room(groups, channels, partial.device)
        arguments = {
            "partial": partial,
            "merged": merged,
            "channels": channels,
            "pieces": pieces,
            "FINAL": final,
            "MOST": MOST_MERGED,
            "BLOCK_N": CHANNELS,
        }
        starts.append(Launch(merge, (configure.cdiv(channels, CHANNELS), max(1, groups)), arguments, 1))
        partial = merged
    return starts


def taken(stats: Tensor | None, pieces: int) -> tuple[Tensor | None, list[Launch]]:
    """Where an epilogue stores its pieces, and the starts that merge them into ``stats``; nothing without it."""
    if stats is None:
        return None, []
    partial = room(pieces, stats.shape[1], stats.device)
    return partial, merges(partial, stats)
