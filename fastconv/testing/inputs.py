"""Operands for a problem: small integers whose sums are exact in every order, or real values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.testing import guard

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "tf32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
# The largest integer up to which every integer is exact in the dtype.
EXACT = {"f64": 2**53, "f32": 2**24, "tf32": 2**24, "f16": 2**11, "bf16": 2**8}


def memory_format(problem: Problem) -> torch.memory_format:
    """The torch name of the problem's layout."""
    return torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format


def written_format(problem: Problem) -> torch.memory_format:
    """The torch name of the layout of the result."""
    if problem.op == "reorder2d":
        return torch.contiguous_format if problem.layout == "nhwc" else torch.channels_last
    return memory_format(problem)


def shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """Shapes of x, w and y (the output, or its gradient); w of a norm is what its wgrad writes, (2, C)."""
    h, w = problem.h, problem.w
    if problem.is_norm:
        whole = (problem.n, problem.c, h.size, w.size)
        return {"x": whole, "w": (2, problem.c), "y": whole}
    return {
        "x": (problem.n, problem.c, h.size, w.size),
        "w": (problem.k, problem.c // problem.groups, h.window, w.window),
        "y": (problem.n, problem.k, h.out, w.out),
    }


def operand_names(problem: Problem) -> tuple[str, str]:
    """The two operands a convolution pass reads."""
    return {"fprop": ("x", "w"), "dgrad": ("y", "w"), "wgrad": ("x", "y")}[problem.pass_]


def written(problem: Problem) -> str:
    """The operand a convolution pass writes."""
    return {"fprop": "y", "dgrad": "x", "wgrad": "w"}[problem.pass_]


def in_buffer(problem: Problem, x: Tensor) -> Tensor:
    """x in the problem's layout, or where the problem reads a slice, the buffer it is a slice of: NaN beside it."""
    if not problem.in_channels:
        return x.contiguous(memory_format=memory_format(problem))
    buffer = x.new_full((problem.n, problem.in_channels, *x.shape[2:]), math.nan)
    buffer[:, problem.in_offset : problem.in_offset + problem.c] = x
    return buffer.contiguous(memory_format=memory_format(problem))


def guarded_output(problem: Problem, offset: int = 0) -> guard.GuardedOutput:
    """Where a forward pass writes, the buffer around its slice included."""
    n, channels, *size = shapes(problem)["y"]
    part = None
    if problem.out_channels:
        part = slice(problem.out_offset, problem.out_offset + channels)
        channels = problem.out_channels
    return guard.GuardedOutput((n, channels, *size), DTYPES[problem.dtype], written_format(problem), offset, part)


@dataclass(frozen=True)
class Operands:
    """Rounded operands of one convolution call; ``bias`` and ``residual`` are None where the epilogue has none."""

    first: Tensor
    second: Tensor
    bias: Tensor | None
    residual: Tensor | None

    def named(self, problem: Problem) -> dict[str, Tensor]:
        """As keyword arguments of a kernel's run()."""
        tensors = dict(zip(operand_names(problem), (self.first, self.second), strict=True))
        extra = {"bias": self.bias, "residual": self.residual}
        return tensors | {name: t for name, t in extra.items() if t is not None}


def terms(problem: Problem) -> int:
    """How many products one output element sums at most."""
    per_group_c, per_group_k = problem.c // problem.groups, problem.k // problem.groups
    taps = problem.h.window * problem.w.window
    match problem.pass_:
        case "fprop":
            return per_group_c * taps
        case "dgrad":
            return per_group_k * taps
    return problem.n * problem.h.out * problem.w.out


def _integers(shape, generator: torch.Generator, density: float) -> Tensor:
    values = torch.randint(-2, 3, shape, generator=generator).double()
    return values * (torch.rand(shape, generator=generator) < density)


def make(problem: Problem, seed: int, integer: bool, multiple: int = 1) -> Operands:
    """Operands in the problem's dtype and layout.

    integer: values in -2..2, thinned out so that every partial sum stays exactly representable in the dtype.
    multiple: of which filter, bias and residual, and so every result, are integer multiples; a power of two.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype, sizes = DTYPES[problem.dtype], shapes(problem)
    # Sums of `terms` products of size <= 4 stay below 6 sigma of the exact range when at most `density` are not zero.
    room = EXACT[problem.dtype] / 2
    density = min(1.0, (room / 24) ** 2 / max(1, terms(problem))) ** 0.5
    if room / 24 < 1:
        density = min(density, 0.5)

    def values(shape: tuple[int, ...], scale: int) -> Tensor:
        return scale * _integers(shape, generator, density) if integer else torch.randn(shape, generator=generator)

    def activation_layout(t: Tensor) -> Tensor:
        return t.to(dtype).contiguous(memory_format=memory_format(problem))

    def operand(name: str) -> Tensor:
        t = values(sizes[name], multiple if name == "w" else 1)
        return t.to(dtype) if name == "w" else activation_layout(t)

    first, second = (operand(name) for name in operand_names(problem))
    target = sizes[written(problem)]
    bias = values((target[1],), multiple).to(dtype) if problem.bias else None
    residual = activation_layout(values(target, multiple)) if problem.residual else None
    return Operands(first, second, bias, residual)
