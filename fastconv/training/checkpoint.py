"""Checkpoints: one safetensors file with named tensors and, in its header, a JSON state. Written whole or not at all.

The tensors' checksum is part of the state, so a file that lost or changed a byte is refused, not resumed from.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_KEY = "fastconv"  # of the state in the header's metadata
_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is not there, is damaged or is of another run."""


def write(path: str | os.PathLike, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write `tensors` and the JSON `state` to `path`: a reader sees the old file or the whole new one, never half."""
    save = _safetensors().torch.save
    path = Path(path)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({"format": _FORMAT, "checksum": _checksum(plain), **state})
    content = save(plain, metadata={_KEY: header})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state in `path`; a CheckpointError in one sentence where they are not whole."""
    path = Path(path)
    library = _safetensors()
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (library.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged or no safetensors file: {error}.") from error
    if _KEY not in metadata:
        raise CheckpointError(f"The checkpoint {path} holds weights but no state of a training run.")
    try:
        state = json.loads(metadata[_KEY])
        form, checksum = state["format"], state["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: its state cannot be read.") from error
    if form != _FORMAT:
        raise CheckpointError(f"The checkpoint {path} has format {form}; this version reads format {_FORMAT}.")
    if checksum != _checksum(tensors):
        raise CheckpointError(f"The checkpoint {path} is damaged: its tensors do not have the checksum {checksum}.")
    return tensors, state


def has_state(path: str | os.PathLike) -> bool:
    """Whether `path` is a safetensors file of a training run, and not weights alone."""
    library = _safetensors()
    if not Path(path).is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            return _KEY in (file.metadata() or {})
    except (library.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged or no safetensors file: {error}.") from error


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that stand under `prefix.`, without it."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of names, types, shapes and bytes, in the order of the names."""
    checksum = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), checksum)
    return checksum


def _safetensors():
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("Checkpoints need the package safetensors: pip install 'fastconv[train]'.") from error
    return safetensors
