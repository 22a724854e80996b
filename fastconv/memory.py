"""What the library keeps of the memory of its results, so that the next ones need no fresh pages.

Results and workspaces of 1 MiB and more come from blocks that are kept when they are freed. What is kept never makes
live and kept blocks together larger than twice the most that was ever live at once. ``fastconv.config(keep_memory=
False)`` turns this off.
"""

from __future__ import annotations

from typing import NamedTuple

from fastconv._native import C


class MemoryStats(NamedTuple):
    """Bytes of large results and workspaces on the CPU: in use, freed and kept, the most that was in use at once."""

    live: int
    kept: int
    peak: int


def memory_stats() -> MemoryStats:
    """The bytes in use and kept now, and the most that was in use at once since the last :func:`release_memory`."""
    return MemoryStats(*C.memory_stats())


def release_memory() -> None:
    """Gives everything that is kept back to the system."""
    C.release_memory()
