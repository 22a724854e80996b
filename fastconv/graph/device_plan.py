"""One part of a network on a GPU: its steps through the rows for CUDA tensors, recorded."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fastconv import settings
from fastconv.graph.forms import Forms
from fastconv.graph.lower import Lowering
from fastconv.graph.network import Network
from fastconv.graph.partition import Part
from fastconv.graph.plan import MOST_PROGRAMS
from fastconv.graph.recorded import CudaGraphs, Recorded, Recorder
from fastconv.graph.report import StageTime
from fastconv.graph.sequence import Sequence as Steps
from fastconv.graph.sequence import by_list


class DevicePlan:
    """Runs a part on a device, recorded once for each shape and layout of its inputs."""

    def __init__(self, network: Network, part: Part, device: torch.device, recorder: Recorder | None = None):
        self.network, self.part, self.device = network, part, device
        self._recorder, self._forms = recorder or CudaGraphs(device), Forms(network.tensors)
        self.programs: dict[Any, Recorded] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        if any(t.numel() == 0 for t in inputs):  # PyTorch's answers to nothing
            return self.network.run_part(self.part, inputs)
        return self.program(inputs).run(inputs)

    def timed(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[StageTime]]:
        """The results, and the time of the whole: what a graph holds has no times of its own."""
        start = perf_counter()
        results = self(inputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        names = tuple(node.name for node in self.part.nodes)
        return results, [StageTime(names, (), perf_counter() - start)]

    def program(self, inputs: Sequence[Tensor]) -> Recorded:
        """The recorded steps for inputs of these shapes and strides."""
        key = (settings.current(), *((t.shape, t.stride()) for t in inputs))
        with self._lock:
            if key not in self.programs:
                if len(self.programs) >= MOST_PROGRAMS:
                    del self.programs[next(iter(self.programs))]
                self.programs[key] = Recorded(self.steps(inputs), inputs, self._recorder)
            return self.programs[key]

    def steps(self, inputs: Sequence[Tensor]) -> Steps:
        choose = partial(by_list, device=self.device.type)
        lowering = Lowering(self.network, self.part, inputs, choose, self._forms.constant)
        return Steps(*lowering.run(), self.device)
