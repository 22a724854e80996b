"""Tensors of a safetensors file, read where they are needed and out of memory again afterwards.

The file is mapped: its pages come when a tensor is read, and can be dropped at any time, since the file has them. The
mapping holds the file that was opened; deleting it, or putting another in its place under its name, changes nothing.
"""

from __future__ import annotations

import json
import mmap
import os
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# https://huggingface.co/docs/safetensors, "Format": eight bytes of size, a header in JSON, the tensors.
SIZE_BYTES = 8
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class MappedFile:
    """A safetensors file. metadata: the words in its header. tensors: what it holds, by name."""

    def __init__(self, path: Any):
        """Raises ValueError for a file that is damaged."""
        try:
            with safe_open(path, framework="pt") as checked:
                self.metadata: dict[str, str] = checked.metadata() or {}
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        self.path = Path(path)
        self._file = open(path, "rb")  # noqa: SIM115, to look whether it changed
        self._memory = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable
        self._state = self._now()
        size = int.from_bytes(self._memory[:SIZE_BYTES], "little")
        header = json.loads(self._memory[SIZE_BYTES : SIZE_BYTES + size])
        header.pop("__metadata__", None)
        begin = SIZE_BYTES + size
        self.tensors = {
            name: MappedTensor(self, DTYPES[about["dtype"]], about["shape"], begin + about["data_offsets"][0])
            for name, about in header.items()
        }

    def read(self, like: Tensor, at: int) -> Tensor:
        """RuntimeError where somebody wrote into the file since it was opened."""
        if self._now() != self._state:
            raise RuntimeError(f"{self.path} was written to since the plan was loaded from it: load it again.")
        if not like.numel():
            return torch.empty_like(like, device="cpu")
        return torch.frombuffer(self._memory, dtype=like.dtype, count=like.numel(), offset=at).view(like.shape)

    def drop(self, begin: int, end: int) -> None:
        """Gives the pages that lie between two bytes back to the system."""
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    def _now(self) -> tuple[int, int]:
        about = os.fstat(self._file.fileno())
        return about.st_size, about.st_mtime_ns


class MappedTensor:
    """A tensor of a mapped file (see :class:`fastconv.graph.weights.Recipe`)."""

    def __init__(self, file: MappedFile, dtype: torch.dtype, shape: list[int], at: int):
        self._file, self._at = file, at
        self._bytes = prod(shape) * dtype.itemsize
        self.like = torch.empty(shape, dtype=dtype, device="meta")

    def make(self) -> Tensor:
        return self._file.read(self.like, self._at)

    def release(self) -> None:
        self._file.drop(self._at, self._at + self._bytes)
