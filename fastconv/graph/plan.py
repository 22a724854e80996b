"""One part of a network as programs: one for each shape and layout of its inputs, made when it first comes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastconv import settings
from fastconv._native import C
from fastconv.graph import select
from fastconv.graph.lower import lower
from fastconv.graph.network import Network
from fastconv.graph.partition import Part
from fastconv.graph.values import Lowered
from fastconv.kernels import native

MOST_PROGRAMS = 8  # of one part; the oldest makes room


class Plan:
    """Runs a part. Filters are packed once for all programs; programs may run side by side in any number of threads."""

    def __init__(self, network: Network, part: Part, winograd: bool):
        self.network, self.part, self.winograd = network, part, winograd
        self.programs: dict[Any, Any] = {}
        self.packed: dict[Any, Tensor] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if any(t.numel() == 0 for t in inputs):  # PyTorch's answers to nothing
            values = dict(zip(self.part.inputs, inputs, strict=True))
            self.network.evaluate(self.part.nodes, values)
            return [values[node] for node in self.part.outputs]
        return self.program(inputs).run(inputs)

    def program(self, inputs: Sequence[Tensor]) -> Any:
        """The program for inputs of these shapes and strides."""
        key = (settings.current(), torch.get_num_threads(), *((t.shape, t.stride()) for t in inputs))
        found = self.programs.get(key)
        if found is None:
            with self._lock:
                found = self.programs.get(key) or self._add(key, self.lower(inputs).program())
        return found

    def lower(self, inputs: Sequence[Tensor]) -> Lowered:
        active = settings.current()
        active = replace(active, winograd=self.winograd and active.winograd)
        return lower(self.network, self.part, inputs, partial(select.by_estimate, active=active), self._pack)

    def _add(self, key: Any, program: Any) -> Any:
        if len(self.programs) >= MOST_PROGRAMS:
            self.programs.pop(next(iter(self.programs)))
        self.programs[key] = program
        return program

    def _pack(self, selection: select.Selection, name: str, filter: Tensor) -> Tensor:
        row = selection.kernel.native
        key = (row, name, C.packed_form(row, selection.problem))
        if key not in self.packed:
            self.packed[key] = native.pack(row, selection.problem, filter)
        return self.packed[key]
