"""Buffers with halos. A kernel that reads outside its input meets NaN; one that writes outside its output changes a
sentinel. Finds both without any tool, at every element offset.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HALO = 96  # elements on each side: more than any register, tile or prefetch may overshoot by mistake
SENTINEL = -77.0
HALO_BYTES = 1024  # of buffers without a type; keeps what lies between halos aligned to a cache line
POISON = 255  # of which bytes a NaN of every type may consist


def guarded(values: Tensor, offset: int = 0, gap: int = 0) -> Tensor:
    """A copy of dense ``values`` (same strides) that starts ``offset`` elements off alignment, inside halos: NaN, or
    the largest integer for indices.

    gap: elements of poison behind each row of the last axis; the copy of contiguous values is then not dense.
    """
    poison = math.nan if values.dtype.is_floating_point else torch.iinfo(values.dtype).max
    rows = values.numel() // max(1, values.shape[-1])
    storage = torch.full((values.numel() + rows * gap + 2 * HALO + offset,), poison, dtype=values.dtype)
    strides = values.stride()
    if gap:
        strides = torch.empty(*values.shape[:-1], values.shape[-1] + gap, device="meta").stride()
    copy = storage.as_strided(values.shape, strides, HALO + offset)
    return copy.copy_(values)


def guarded_bytes(count: int) -> Tensor:
    """``count`` bytes, aligned to a cache line, inside halos of poison and poisoned themselves."""
    return torch.full((count + 2 * HALO_BYTES,), POISON, dtype=torch.uint8)[HALO_BYTES : HALO_BYTES + count]


class GuardedOutput:
    """A poisoned output inside sentinel halos.

    ``tensor`` holds NaN (indices: the largest integer) everywhere; with a channel slice, ``buffer`` is the whole dense
    buffer and the channels around the slice hold sentinels too.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        memory_format: torch.memory_format = torch.contiguous_format,
        offset: int = 0,
        channels: slice | None = None,
    ):
        dense = torch.empty(shape, dtype=dtype, device="meta").contiguous(memory_format=memory_format)
        poison = math.nan if dtype.is_floating_point else torch.iinfo(dtype).max
        self._sentinel = SENTINEL if dtype.is_signed else -SENTINEL
        self._storage = torch.full((dense.numel() + 2 * HALO + offset,), self._sentinel, dtype=dtype)
        self.buffer = self._storage.as_strided(shape, dense.stride(), HALO + offset)
        self.tensor = self.buffer[:, channels] if channels else self.buffer
        self.tensor.fill_(poison)

    def violation(self) -> str | None:
        """A sentence when anything outside ``tensor`` changed, else None."""
        outside = torch.ones_like(self._storage, dtype=torch.bool)
        inside = outside.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset())
        inside.fill_(False)
        changed = outside & (self._storage != self._sentinel)
        if not changed.any():
            return None
        first = int(changed.nonzero()[0])
        return f"{int(changed.sum())} elements outside the output changed, the first at storage offset {first}."
