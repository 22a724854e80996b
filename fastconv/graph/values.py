"""What a lowered plan is made of: values in buffers, and steps that read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.graph import memory
from fastconv.graph.select import Selection

Strided = tuple[tuple[int, ...], tuple[int, ...], int]
DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(eq=False)
class Buffer:
    """Memory of a value: a block of the arena, or an input or output of the program."""

    where: str  # "arena", "input", "output"
    number: int = 0
    block: memory.Block | None = None
    elements: int = 0


@dataclass(frozen=True)
class Value:
    """A tensor of a program: N C H W in a buffer, as channels_last unless said otherwise.

    offset, width: it is channels [offset, offset + C) of a buffer of ``width``; width 0: dense.
    """

    buffer: Buffer
    n: int
    c: int
    h: int
    w: int
    dtype: str
    layout: str = "nhwc"
    offset: int = 0
    width: int = 0

    @property
    def elements(self) -> int:
        return self.n * self.c * self.h * self.w

    @property
    def bytes(self) -> int:
        return self.elements * bytes_of(self.dtype)

    @property
    def one_pixel(self) -> bool:
        return self.h == self.w == 1

    @property
    def head(self) -> str:
        """The words of a problem that describe it."""
        return f"n{self.n}c{self.c}h{self.h}w{self.w}"


@dataclass(frozen=True)
class Filter:
    """A network's constant as the filter of a step.

    map: channels, height and width where its columns are those of a flattened map, which a plan has by pixels.
    """

    name: str
    map: tuple[int, int, int] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """K C R S, with the strides that it has, from the constant."""
        weight = weight.detach()
        if self.map is not None:
            weight = weight.view(-1, *self.map).permute(0, 2, 3, 1).reshape(weight.shape)
        return weight if weight.dim() == 4 else weight[..., None, None]


@dataclass
class Step:
    """One call of one kernel. ``reads`` are values by the names of kernel.h's Args.

    numbers: eps, response and factor, where a kernel takes one. strided: sizes, strides and first element of those
    operands that lie by strides of their own; of "out" the part that is written.
    """

    selection: Selection
    reads: dict[str, Value]
    out: Value
    constants: dict[str, Tensor]
    origin: str  # the captured node it comes from
    numbers: dict[str, Any] = field(default_factory=dict)
    strided: dict[str, Strided] = field(default_factory=dict)

    @property
    def kernel_and_problem(self) -> tuple[int, Any]:
        """As the extension names them."""
        return self.selection.kernel.native, self.selection.problem

    def as_dict(self) -> dict[str, Any]:
        """The extension's form of it."""
        places = {name: (*_place(value.buffer), 0) for name, value in (self.reads | {"out": self.out}).items()}
        strides = {name: list(self.constants[name].stride()) for name in ("mask",) if name in self.constants}
        for name, (_, steps, first) in self.strided.items():
            places[name] = (*places[name][:2], first * bytes_of(self.out.dtype))
            if name != "out":
                strides[name] = list(steps)
        row, problem = self.kernel_and_problem
        made = {"kernel": row, "problem": problem, "places": places, "strides": strides, "constants": self.constants}
        # Batch norms are affine maps by now, and have no eps.
        return made | {"eps": 0.0, "factor": 1.0} | self.numbers


@dataclass
class Stage:
    """Steps that run together: one, or several in strips of ``height`` rows (csrc/plan/strips.h)."""

    steps: list[Step]
    height: int = 0

    @property
    def values(self) -> list[Value]:
        """What it reads and writes; what passes between its steps lies in its workspace."""
        inside = {step.out.buffer for step in self.steps[:-1]}
        reads = [value for step in self.steps for value in step.reads.values() if value.buffer not in inside]
        return [*reads, self.steps[-1].out]

    def workspace_bytes(self, threads: int) -> int:
        if self.height:
            return threads * C.strip_bytes([step.kernel_and_problem for step in self.steps], self.height)
        return C.workspace(*self.steps[0].kernel_and_problem, threads)


@dataclass(frozen=True)
class Lowered:
    """A program before it is handed to the extension.

    workspaces: of its stages. results_bytes: what its results would take at once if each had memory of its own for as
    long as it is needed, as in PyTorch.
    """

    stages: list[Stage]
    workspaces: list[memory.Block]
    inputs: list[Any]
    outputs: list[Any]
    arena_bytes: int
    results_bytes: int
    threads: int

    @property
    def steps(self) -> list[Step]:
        return [step for stage in self.stages for step in stage.steps]

    @property
    def constants(self) -> list[Tensor]:
        """Filters and what else is the same in every run."""
        return [constant for step in self.steps for constant in step.constants.values()]

    @property
    def constant_bytes(self) -> int:
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self.constants}.values())

    def program(self, arenas: Any = None) -> Any:
        """The extension's form of it, with arenas (``C.Arenas``) of its own or those of others."""
        stages = [
            {"steps": [step.as_dict() for step in stage.steps], "height": stage.height, "workspace": workspace.at}
            for stage, workspace in zip(self.stages, self.workspaces, strict=True)
        ]
        return C.Program(stages, self.inputs, self.outputs, self.arena_bytes, self.threads, arenas or C.Arenas())


def _place(buffer: Buffer) -> tuple[str, int]:
    # A buffer inside a stage has no block: the stage knows where it lies.
    return buffer.where, buffer.block.at if buffer.block is not None else buffer.number


def value_of(shape: Sequence[int], dtype: str, buffer: Buffer) -> Value:
    if len(shape) == 4:
        n, c, h, w = shape
    else:  # rows of features
        n, c, h, w = prod(shape[:-1]), shape[-1], 1, 1
    return Value(buffer, n, c, h, w, dtype)


def bytes_of(dtype: str) -> int:
    return {name: torch_dtype.itemsize for torch_dtype, name in DTYPES.items()}[dtype]
