"""Tiles by bucket: a written model of shared memory, registers and bytes picks them; nothing is searched at run time.

A bucket is dtype, filter, stride and the powers of two around M, C and K, so shapes that are alike share one compiled
kernel. The rates below are data-sheet numbers, not measurements: no tile of this file has run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from fastconv.problem import Problem

SIZE = {"f32": 4, "tf32": 4, "f16": 2, "bf16": 2}
VECTOR = 16  # bytes one thread loads at once
WARP = 32
REGISTERS = 65536  # of 32 bits, on one multiprocessor
LATENCY = 700  # cycles from an asynchronous copy to its data
OVERHEAD = 100  # cycles of addresses and barriers in each step of a product's loop
LEAST = 16  # rows, columns and depth of the smallest matrix instruction Triton takes
WARPGROUP_ROWS = 64  # rows of a wgmma instruction
MMA_RATE = 0.6  # of the matrix rate, on Hopper and later, without wgmma (mma.sync alone)
DEPTHS = (16, 32, 64)  # of a tile
# Values of a thread above which ptxas 12.8 spilled sums or addresses, for sm_80 to sm_100 (compiled ahead, 2026-11);
# numbered depths have an address for each. A few kernels below still keep 8 or 16 bytes, masks, outside their loops.
MOST_LIVE, MOST_LIVE_NUMBERED = 128, 64
FMAS, SHARED_VALUES = 128, 32  # float products, and values from shared memory, a cycle and multiprocessor
SUMS_OF_FOUR_WARPS = 128 * 64  # of a tile: larger ones are computed by eight
LEAST_STEPS = 8  # of a filter gradient's piece: a shorter one spends its time on starting and storing
MOST_OFFERED = 12  # tiles of a product, the model's best, that a search tries
PARTIALS = 64 << 20  # bytes that the partial sums of a filter gradient may take


@dataclass(frozen=True)
class Machine:
    """What the model knows of an architecture.

    shared: bytes one block may have. multiprocessors: of the largest common part. matrix: FLOPs a cycle and
    multiprocessor, by dtype. l2, memory: bytes a cycle and multiprocessor.
    """

    shared: int
    multiprocessors: int
    matrix: dict[str, float]
    l2: float
    memory: float


# A100, H200 and B200 data sheets.
MACHINES = {
    80: Machine(163 << 10, 108, {"f32": 128, "tf32": 1024, "f16": 2048, "bf16": 2048}, 64, 10),
    90: Machine(227 << 10, 132, {"f32": 256, "tf32": 2048, "f16": 4096, "bf16": 4096}, 64, 20),
    100: Machine(227 << 10, 148, {"f32": 256, "tf32": 4096, "f16": 8192, "bf16": 8192}, 64, 29),
}
ARCHITECTURES = tuple(MACHINES)


@dataclass(frozen=True)
class Tile:
    """What one block computes: m rows (pixels, or filters of a filter gradient), n columns (channels), k deep."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 1


@dataclass(frozen=True)
class Slab:
    """Neighbouring groups of a convolution that share a tile of a product. count: slabs in all, of which the last may
    have fewer groups. channels, filters: of a slab.
    """

    groups: int
    count: int
    channels: int
    filters: int


_forced: Tile | None = None


@contextmanager
def forced(tile: Tile) -> Iterator[None]:
    """Every kernel takes this tile inside the block: the way tests reach several tiles with small problems."""
    global _forced
    before, _forced = _forced, tile
    try:
        yield
    finally:
        _forced = before


_chosen: ContextVar[Tile | None] = ContextVar("chosen", default=None)
_offered: ContextVar[list[tuple[Tile, ...]] | None] = ContextVar("offered", default=None)


@contextmanager
def using(tile: Tile | None) -> Iterator[None]:
    """Kernels planned inside the block, by this thread, take this tile where the model offers it for their problem: a
    tile from a file can be slow, but not impossible. None leaves the choice to the model.
    """
    token = _chosen.set(tile)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> Tile | None:
    """The tile of the :func:`using` block around the caller."""
    return _chosen.get()


@contextmanager
def offers() -> Iterator[list[tuple[Tile, ...]]]:
    """Notes which tiles the kernels planned inside the block could take, the model's own choice first."""
    noted: list[tuple[Tile, ...]] = []
    token = _offered.set(noted)
    try:
        yield noted
    finally:
        _offered.reset(token)


def _pick(tiles: tuple[Tile, ...]) -> Tile:
    """The forced tile, the chosen one where it is one of these, or the model's."""
    if (noted := _offered.get()) is not None:
        noted.append(tiles)
    wanted = _chosen.get()
    return _forced or (wanted if wanted in tiles else tiles[0])


def machine(architecture: int) -> Machine:
    """The nearest machine the model knows that is not newer; the oldest one for anything older."""
    known = [number for number in MACHINES if number <= architecture]
    return MACHINES[max(known, default=min(MACHINES))]


def power(value: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(0, value - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


def matrix_tile(
    dtype: str, m: int, n: int, k: int, architecture: int, channels: int = 0, deepest: int = DEPTHS[-1]
) -> Tile:
    """The tile of an m x n product, k deep, each rounded up to a power of two first.

    channels: of one tap, where the depth is taps and channels of an implicit product. deepest: of the tiles.
    """
    numbered = frozenset(depth for depth in DEPTHS if channels and flat(channels, depth))
    tiles = _matrix_tiles(dtype, power(m), power(n), power(k), architecture, numbered, deepest)
    return _pick(tiles)


@lru_cache(maxsize=4096)
def _matrix_tiles(
    dtype: str, m: int, n: int, k: int, architecture: int, numbered: frozenset[int], deepest: int
) -> tuple[Tile, ...]:
    """The best of the model, in its order."""
    candidates = _matrix_candidates(dtype, n, min(k, deepest), architecture, numbered)
    return tuple(sorted(candidates, key=lambda tile: matrix_cycles(tile, dtype, m, n, k, architecture))[:MOST_OFFERED])


def _matrix_candidates(dtype: str, n: int, k: int, architecture: int, numbered: frozenset[int]) -> Iterator[Tile]:
    chip = machine(architecture)
    if dtype == "f32":
        # Without a matrix instruction both operands pass through registers: 128 x 64 spilled, and so do deep tiles.
        for rows, columns in ((32, 32), (64, 32), (64, 64)):
            yield Tile(rows, min(columns, max(LEAST, n)), LEAST, 4, 2)
        return
    fewest = least_rows(dtype, architecture)
    for rows, columns, depth, stages in product((32, 64, 128), (16, 32, 64, 128, 256), DEPTHS, (2, 3, 4)):
        warps = 8 if rows * columns > SUMS_OF_FOUR_WARPS else 4
        tile = Tile(rows, columns, depth, warps, stages)
        wide = columns > max(LEAST, n) or depth > max(LEAST, k)
        if rows < fewest or wide or shared_bytes(tile, dtype) > chip.shared:
            continue
        if live(tile) <= (MOST_LIVE_NUMBERED if depth in numbered else MOST_LIVE):
            yield tile


def least_rows(dtype: str, architecture: int) -> int:
    """Of a tile."""
    return WARPGROUP_ROWS if architecture >= 90 and dtype != "f32" else LEAST * 2


def slab(problem: Problem, written: int, least: int = LEAST) -> Slab:
    """As many groups as fit into the ``least`` columns (or rows) that a tile has anyway; written: C or K, whichever
    they are of. Their product is a block diagonal: its depth grows with the groups and their number of tiles shrinks
    with it, so the operations stay, while loads and stores get rows as long as all of them.
    """
    each = written // problem.groups
    groups = max(1, min(problem.groups, least // max(1, each)))
    return Slab(
        groups,
        cdiv(problem.groups, groups),
        problem.c // problem.groups * groups,
        problem.k // problem.groups * groups,
    )


def live(tile: Tile) -> int:
    """Values a thread holds: its sums, and what it loads in a step."""
    return accumulators(tile) + (tile.m + tile.n) * tile.k // (tile.warps * WARP)


def shared_bytes(tile: Tile, dtype: str) -> int:
    """Of both operands, all stages."""
    return tile.stages * (tile.m + tile.n) * tile.k * SIZE[dtype]


def accumulators(tile: Tile) -> int:
    """Registers a thread needs for its sums."""
    return tile.m * tile.n // (tile.warps * WARP)


def occupancy(tile: Tile, dtype: str, architecture: int) -> int:
    """Blocks that share a multiprocessor."""
    registers = min(255, 2 * accumulators(tile) + 64) * tile.warps * WARP
    return max(1, min(machine(architecture).shared // shared_bytes(tile, dtype), REGISTERS // registers))


def matrix_cycles(tile: Tile, dtype: str, m: int, n: int, k: int, architecture: int) -> float:
    """Cycles of the whole product: arithmetic, second-level cache or latency, whichever lasts, wave by wave."""
    chip, size = machine(architecture), SIZE[dtype]
    rate = chip.matrix[dtype]
    if dtype == "f32":
        # A thread with t x t sums reads 2 t values from shared memory for t² products.
        rate *= min(1.0, accumulators(tile) ** 0.5 * SHARED_VALUES / (2 * FMAS))
    elif architecture >= 90 and tile.m < WARPGROUP_ROWS:
        rate *= MMA_RATE
    resident = occupancy(tile, dtype, architecture)
    blocks = cdiv(m, tile.m) * cdiv(n, tile.n)
    together = min(resident, cdiv(blocks, chip.multiprocessors))
    step = OVERHEAD + max(
        together * 2 * tile.m * tile.n * tile.k / rate,
        together * (tile.m + tile.n) * tile.k * size / chip.l2,
        LATENCY / tile.stages,
    )
    written = together * tile.m * tile.n * size / chip.memory
    waves = cdiv(blocks, chip.multiprocessors * together)
    return waves * (LATENCY + cdiv(k, tile.k) * step + written)


def fused_tile(dtype: str, pixels: int, columns: int, depth: int, architecture: int) -> Tile:
    """The tile of a product whose rows are computed in registers by each block of columns anew: as many columns as the
    sums leave room for, so that few blocks repeat that work.
    """
    if dtype == "f32":
        return _pick((Tile(32, min(64, max(LEAST, power(columns))), LEAST),))
    most = 64 if power(pixels) < WARPGROUP_ROWS * machine(architecture).multiprocessors else 128
    widest = min(most, max(LEAST, power(columns)))
    depths = [min(d, max(LEAST, power(depth))) for d in (32, 16, 64)]
    return _pick(tuple(dict.fromkeys(Tile(WARPGROUP_ROWS, widest, d) for d in depths)))


def splits(tile: Tile, m: int, n: int, k: int, architecture: int) -> int:
    """Pieces into which a filter gradient cuts its k pixels so that all multiprocessors have work; a power of two.

    Depends on the problem's bucket and the architecture alone, and so do the bits of the result.
    """
    blocks = cdiv(power(m), tile.m) * cdiv(power(n), tile.n)
    wanted = cdiv(2 * machine(architecture).multiprocessors, blocks)
    steps = cdiv(power(k), tile.k)
    room = max(1, PARTIALS // (4 * power(m) * power(n)))
    least_steps = 1 if _forced else LEAST_STEPS
    return _floor_power(max(1, min(wanted, steps // least_steps, room)))


def _floor_power(value: int) -> int:
    return 1 << (value.bit_length() - 1)


def map_tile(dtype: str, pixels: int, channels: int, channels_last: bool, elements: int = 1024) -> Tile:
    """Pixels (m) and channels (n) of a block that is bound by bytes: whole vectors along the axis that lies together.

    elements: what a block holds at once, so that the registers of every value a kernel keeps fit.
    """
    sizes = (elements, elements // 2, elements * 2)
    return _pick(tuple(dict.fromkeys(_map_tile(dtype, pixels, channels, channels_last, size) for size in sizes)))


def _map_tile(dtype: str, pixels: int, channels: int, channels_last: bool, elements: int) -> Tile:
    if channels_last:
        columns = min(power(channels), 16 * VECTOR // SIZE[dtype], elements)
        return Tile(max(1, min(elements // columns, power(pixels))), columns, 1)
    rows = min(power(pixels), elements)
    return Tile(rows, max(1, min(power(channels), elements // rows // 4)), 1)


def flat(channels: int, depth: int) -> bool:
    """Whether taps and channels are numbered in one row: where blocks of channels would waste more than a quarter."""
    return 4 * cdiv(channels, depth) * depth > 5 * channels


def is_forced() -> bool:
    """Whether tiles are given by :func:`forced`; pieces are then as short as they can be."""
    return _forced is not None
