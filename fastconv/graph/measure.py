"""Which kernel runs a step fastest, by running each that accepts it: ``optimize(..., tune=True)``."""

from __future__ import annotations

from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.graph import memory
from fastconv.graph.select import Selection, by_estimate, offers
from fastconv.graph.values import DTYPES, Buffer, Lowered, Stage, Step, value_of
from fastconv.kernels import native
from fastconv.problem import Problem
from fastconv.settings import Settings

TURNS = 9  # of every rival; odd, so that the median is one of them
HOPELESS = 2.0  # times the fastest first run: not measured further


def by_measurement(problem: Problem, active: Settings) -> Selection:
    """The fastest of the kernels that accept a convolution, measured once in a process. Others have one kernel each."""
    if not problem.is_conv:
        return by_estimate(problem, active)
    return _fastest(str(problem), active, torch.get_num_threads())


@cache
def _fastest(text: str, active: Settings, threads: int) -> Selection:
    found = [selection for _, selection in offers(Problem(text), active)]
    rivals = [s for s in found if not s.kernel.is_reference and s.kernel.target != "scalar"] or found
    if len(rivals) == 1:
        return rivals[0]
    trials = [Trial(selection, threads) for selection in rivals]
    first = [min(trial.seconds(), trial.seconds()) for trial in trials]
    trials = [t for t, once in zip(trials, first, strict=True) if once <= HOPELESS * min(first)]
    samples: list[list[float]] = [[] for _ in trials]
    for _ in range(TURNS):  # in turns: a slow moment of the machine hits all alike
        for trial, taken in zip(trials, samples, strict=True):
            trial.seconds()  # takes the caches back from the one before
            taken.append(trial.seconds())
    times = [median(taken) for taken in samples]
    return trials[times.index(min(times))].selection


class Trial:
    """A program of one step, and operands for it."""

    def __init__(self, selection: Selection, threads: int):
        self.selection, p = selection, selection.problem
        source, written = (p.n, p.in_channels or p.c, p.h.size, p.w.size), (p.n, p.k, p.h.out, p.w.out)
        if p.pass_ == "dgrad":
            source, written = written, source
        read = "y" if p.pass_ == "dgrad" else "x"
        shapes = {read: source} | ({"residual": written} if p.residual else {})
        self._inputs = [_random(shape, p) for shape in shapes.values()]
        borders = [C.Border(list(t.shape), list(t.stride()), t.dtype) for t in self._inputs]
        reads = {name: value_of(shape, p.dtype, Buffer("input", i)) for i, (name, shape) in enumerate(shapes.items())}
        buffer = (p.n, p.out_channels or written[1], *written[2:])
        out = value_of(buffer, p.dtype, Buffer("arena"))
        out.buffer.block = memory.Block(out.bytes, 0, 0)
        stage = Stage([Step(selection, reads, out, self._constants(written[1]), "trial")])
        workspace = memory.Block(stage.workspace_bytes(threads), 0, 0)
        arena = memory.place([out.buffer.block, workspace])
        self._program = Lowered([stage], [workspace], borders, [], arena, out.bytes, threads).program()

    def seconds(self) -> float:
        """Of one call."""
        return self._program.timed(self._inputs)[1][0]

    def _constants(self, written: int) -> dict[str, Tensor]:
        p, row = self.selection.problem, self.selection.kernel.native
        filter = _random((p.k, p.c // p.groups, p.h.window, p.w.window), p)
        made: dict[str, Any] = {"packed": native.pack(row, p, filter)} if p.packed else {"w": filter}
        return made | ({"bias": _random((written,), p)} if p.bias else {})


def _random(shape: tuple[int, ...], problem: Problem) -> Tensor:
    dtype = next(torch_dtype for torch_dtype, name in DTYPES.items() if name == problem.dtype)
    values = torch.randn(shape).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values
