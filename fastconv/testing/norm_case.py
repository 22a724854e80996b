"""One case of a norm: operands, what a kernel must make of them, and how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.testing.inputs import DTYPES, memory_format, shapes

# integers: small ones, variances whose roots are powers of two and no eps, so that all but training is exact;
# normal: real values; shifted: channels whose mean is a hundred times their deviation.
KINDS = ("integers", "normal", "shifted")
EPS = 1e-5
SHIFT = 100.0
STEPS = 8  # roundings of a result beside those of its sums: root, quotient, scale, shift, multiply-add, epilogue


@dataclass(frozen=True)
class Case:
    """Operands of a kernel's run() in the problem's layout, what it must write, and how far it may be off.

    numbers: eps of a batch norm, response (alpha, beta, k) of a local response norm.
    expected, allowed: of ``out``; ``stats`` and ``stats_allowed``: of the pair a kernel writes beside it, or None.
    size: the sum of absolute terms of each element of ``out``.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, object]
    expected: Tensor
    allowed: Tensor
    stats: Tensor | None
    stats_allowed: Tensor | None
    size: Tensor


def arithmetic(problem: Problem) -> torch.dtype:
    """The dtype of what has one value a channel."""
    return torch.float64 if problem.dtype == "f64" else torch.float32


def values(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    if kind == "integers":
        return torch.randint(-2, 3, shape, generator=generator).double()
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values + SHIFT if kind == "shifted" and len(shape) > 1 else values


def activation(problem: Problem, kind: str, generator: torch.Generator) -> Tensor:
    """A tensor of the input's shape, in the problem's dtype and layout."""
    drawn = values(shapes(problem)["x"], kind, generator).to(DTYPES[problem.dtype])
    return drawn.contiguous(memory_format=memory_format(problem))
