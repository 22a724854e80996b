"""What a lowered plan is made of: values in buffers, and steps that read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.graph import memory
from fastconv.graph.select import Selection

DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(eq=False)
class Buffer:
    """Memory of a value: a block of the arena, or an input or output of the program."""

    where: str  # "arena", "input", "output"
    number: int = 0
    block: memory.Block | None = None


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
    def one_pixel(self) -> bool:
        return self.h == self.w == 1

    @property
    def head(self) -> str:
        """The words of a problem that describe it."""
        return f"n{self.n}c{self.c}h{self.h}w{self.w}"


@dataclass
class Step:
    """One call of one kernel. ``reads`` and ``writes`` are values by the names of kernel.h's Args."""

    selection: Selection
    reads: dict[str, Value]
    out: Value
    constants: dict[str, Tensor]
    response: tuple[float, float, float] | None
    origin: str  # the captured node it comes from
    workspace: memory.Block | None = None


@dataclass(frozen=True)
class Lowered:
    """A program before it is handed to the extension."""

    steps: list[Step]
    inputs: list[Any]
    outputs: list[Any]
    arena_bytes: int
    threads: int

    def program(self) -> Any:
        """The extension's form of it."""
        return C.Program(
            [_as_dict(step) for step in self.steps], self.inputs, self.outputs, self.arena_bytes, self.threads
        )


def _as_dict(step: Step) -> dict[str, Any]:
    def place(value: Value) -> tuple[str, int]:
        buffer = value.buffer
        return buffer.where, buffer.block.at if buffer.block is not None else buffer.number

    places = {name: place(value) for name, value in step.reads.items()} | {"out": place(step.out)}
    made = {
        "kernel": step.selection.kernel.native,
        "problem": step.selection.problem,
        "places": places,
        "constants": step.constants,
        "eps": 0.0,  # norms are affine maps by now
        "workspace": step.workspace.at,
    }
    return made | ({"response": step.response} if step.response else {})


def value_of(shape: Sequence[int], dtype: str, buffer: Buffer) -> Value:
    if len(shape) == 4:
        n, c, h, w = shape
    else:  # rows of features
        n, c, h, w = prod(shape[:-1]), shape[-1], 1, 1
    return Value(buffer, n, c, h, w, dtype)


def bytes_of(dtype: str) -> int:
    return {name: torch_dtype.itemsize for torch_dtype, name in DTYPES.items()}[dtype]
