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
from fastconv.graph.forms import Forms
from fastconv.graph.lower import lower
from fastconv.graph.measure import by_measurement
from fastconv.graph.network import Network
from fastconv.graph.partition import Part
from fastconv.graph.report import Footprint, StageTime
from fastconv.graph.values import Lowered

MOST_PROGRAMS = 8  # of one part; the oldest makes room


class Plan:
    """Runs a part. Filters are packed once for all programs; programs may run side by side in any number of threads.

    arenas: memory of runs (``C.Arenas``), shared with whom they are given to as well; None: of its own.
    """

    def __init__(self, network: Network, part: Part, policy: select.Policy, arenas: Any = None):
        self.network, self.part, self.policy = network, part, policy
        self.programs: dict[Any, Any] = {}
        self.footprints: dict[Any, Footprint] = {}  # of the programs
        self._constants: dict[Any, list[Tensor]] = {}  # of the programs
        self.forms, self.arenas = Forms(network.tensors), arenas or C.Arenas()
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if any(t.numel() == 0 for t in inputs):  # PyTorch's answers to nothing
            return self.network.run_part(self.part, inputs)
        return self.program(inputs).run(inputs)

    def timed(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[StageTime]]:
        """The results, and what each stage of the program took."""
        program = self.program(inputs)
        results, seconds = program.timed(inputs)
        stages = zip(program.stages, seconds, strict=True)
        return results, [
            StageTime(tuple(name for name, _ in steps), tuple(str(problem) for _, problem in steps), taken)
            for steps, taken in stages
        ]

    def program(self, inputs: Sequence[Tensor]) -> Any:
        """The program for inputs of these shapes and strides."""
        key = (settings.current(), torch.get_num_threads(), *((t.shape, t.stride()) for t in inputs))
        found = self.programs.get(key)
        if found is None:
            with self._lock:
                found = self.programs.get(key) or self._add(key, inputs)
        return found

    def lower(self, inputs: Sequence[Tensor]) -> Lowered:
        """A program before it is handed to the extension, its filters packed."""
        active = settings.current()
        active = replace(active, winograd=self.policy.winograd and active.winograd)
        choose = by_measurement if self.policy.tune else select.by_estimate
        lowered = lower(self.network, self.part, inputs, partial(choose, active=active), self.forms.constant)
        self.forms.pack()
        return lowered

    def _add(self, key: Any, inputs: Sequence[Tensor]) -> Any:
        if len(self.programs) >= MOST_PROGRAMS:
            oldest = next(iter(self.programs))
            del self.programs[oldest], self.footprints[oldest], self._constants[oldest]
            self.forms.only(constant for constants in self._constants.values() for constant in constants)
        lowered = self.lower(inputs)
        shapes = tuple(tuple(t.shape) for t in inputs)
        self.footprints[key] = Footprint(shapes, lowered.arena_bytes, lowered.results_bytes, lowered.constant_bytes)
        self._constants[key] = lowered.constants
        self.programs[key] = lowered.program(self.arenas)
        return self.programs[key]
