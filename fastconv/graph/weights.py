"""A network's constants by name: tensors that are kept, and tensors that are made again whenever one is needed.

A plan's kernels read most filters in a form of their own. What such a form is packed from is needed for the moment of
packing alone: a filter with a batch norm folded into it is folded again, and one in a file read again, when another
batch size brings a kernel with another form.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Recipe(Protocol):
    """How a tensor is made. like: a tensor of its shape, strides and dtype on the meta device."""

    like: Tensor

    def make(self) -> Tensor:
        """The tensor, which nobody may write."""

    def release(self) -> None:
        """What making it left in memory is not needed any more."""


class Weights(Mapping[str, Tensor]):
    """Tensors by name, where some are made each time they are asked for."""

    def __init__(self, entries: Mapping[str, Tensor] | Weights = {}):  # noqa: B006, it is copied
        self._entries: dict[str, Tensor | Recipe] = dict(entries._entries if isinstance(entries, Weights) else entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry if isinstance(entry, Tensor) else entry.make()

    def __setitem__(self, name: str, entry: Tensor | Recipe) -> None:
        self._entries[name] = entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def device(self) -> torch.device:
        """Where the first of them is."""
        kept = (entry for entry in self._entries.values() if isinstance(entry, Tensor))
        return next((tensor.device for tensor in kept), torch.device("cpu"))

    def entry(self, name: str) -> Tensor | Recipe:
        """What stands for a tensor: the same for two names of one tensor."""
        return self._entries[name]

    def like(self, name: str) -> Tensor:
        """A tensor of its shape, strides and dtype, without data."""
        entry = self._entries[name]
        if not isinstance(entry, Tensor):
            return entry.like
        return torch.empty_strided(entry.shape, entry.stride(), dtype=entry.dtype, device="meta")

    @contextmanager
    def lent(self, name: str) -> Iterator[Tensor]:
        """The tensor for the length of a block."""
        entry = self._entries[name]
        if isinstance(entry, Tensor):
            yield entry
        else:
            try:
                yield entry.make()
            finally:
                entry.release()

    def keep(self, names: Iterable[str]) -> None:
        """Makes these tensors once and for all."""
        for name in names:
            self._entries[name] = self[name]

    def only(self, names: Container[str]) -> Weights:
        """Those of the given names."""
        return Weights({name: entry for name, entry in self._entries.items() if name in names})
