"""Notices that a model's parameters or buffers are no longer those a plan was made of."""

from __future__ import annotations

from torch import Tensor, nn

from fastconv._native import C


class Watch:
    """Remembers a model's tensors by identity, storage and version.

    Writes past the version counter (through ``.data``, NumPy or DLPack) cannot be seen; after those, refresh.
    """

    def __init__(self, model: nn.Module, names: list[str]):
        self._places = [_place(model, name) for name in names]
        self._names = names
        self.fingerprint = C.Fingerprint(self._places)
        self._states_then, self.seen = self._states(), self.fingerprint.look()

    def changed(self) -> str | None:
        """The name of a tensor that was replaced or written since, or None."""
        if self.fingerprint.look() == self.seen:
            return None
        states = self._states()
        return next(name for name, old, new in zip(self._names, self._states_then, states, strict=True) if old != new)

    def _states(self) -> list[tuple[int, int, int]]:
        return [_state(tensors[name]) for tensors, name in self._places]


def _place(model: nn.Module, name: str) -> tuple[dict[str, Tensor], str]:
    """The dictionary of a module that holds a tensor, which stays when the tensor is replaced."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path)
    return (module._parameters if last in module._parameters else module._buffers), last


def _state(tensor: Tensor | None) -> tuple[int, int, int]:
    if tensor is None:
        return 0, 0, 0
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), tensor.untyped_storage()._cdata, version
