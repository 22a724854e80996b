"""A function of tensors that is recorded once and replayed: one CUDA graph for a whole plan."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 2  # before a capture: kernels are loaded, libraries have made their workspaces


class Recorder(Protocol):
    """How work on one device is recorded."""

    def record(self, function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        """What the function returns, and what does its work again, into the same tensors."""


class CudaGraphs:
    """torch.cuda.CUDAGraph. Captured on a stream of its own, replayed on the current one."""

    def __init__(self, device: torch.device):
        self._device = device

    def record(self, function: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Callable[[], None]]:
        cuda = torch.cuda
        with cuda.device(self._device):
            stream, graph = cuda.Stream(), cuda.CUDAGraph()
            stream.wait_stream(cuda.current_stream())
            with cuda.stream(stream):
                for _ in range(WARM_UPS):
                    function()
            cuda.current_stream().wait_stream(stream)
            with cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = function()

        def replay() -> None:
            with cuda.device(self._device):
                graph.replay()

        return results, replay


class Recorded:
    """Calls of one function on inputs that lie alike: copied to where it was recorded, replayed, results copied out.

    Calls of several threads come one after another, since all use the same tensors; threads with CUDA streams of their
    own must order them.
    """

    def __init__(
        self, function: Callable[[Sequence[Tensor]], list[Tensor]], like: Sequence[Tensor], recorder: Recorder
    ):
        self._inputs = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t) for t in like]
        self._results, self._replay = recorder.record(lambda: function(self._inputs))
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with self._lock:
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            self._replay()
            return [result.clone() for result in self._results]
