"""One check of one convolution kernel on one problem: guarded buffers, the oracle, equality or the error bound."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastconv import reference
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import guard, inputs, tolerances


def check_conv(
    kernel: Kernel,
    problem: Problem,
    *,
    seed: int = 0,
    integer: bool = True,
    offset: int = 0,
    weight_channels_last: bool = False,
    weight_gap: int = 0,
    threads: int = 0,
) -> None:
    """Runs a native kernel between guards and raises AssertionError with one sentence when anything is wrong.

    integer: demand equality with the float64 result where the algorithm is exact; otherwise hold the error bound.
    offset: elements by which every buffer is off alignment.
    weight_gap: elements between the rows of a contiguous weight, as a slice of a larger one has them.
    """
    integer = integer and kernel.algorithm not in tolerances.INEXACT
    operands, expected = case(problem, seed, integer, tolerances.WEIGHT_MULTIPLE.get(kernel.algorithm, 1))
    out = run_guarded(kernel, problem, operands, offset, weight_channels_last, weight_gap, threads)
    assert not out.isnan().any(), f"{int(out.isnan().sum())} elements were not written or read outside an input."
    if integer and is_exact(problem):
        _assert_equal(out, expected.to(out.dtype))
    else:
        _assert_bounded(problem, kernel, operands, out, expected)


def is_exact(problem: Problem) -> bool:
    """Whether the result on small integers is an integer too, so that equality can be demanded."""
    return problem.activation in ("none", "relu", "relu6")


@lru_cache(maxsize=2)  # every kernel of one algorithm is held against one result
def case(problem: Problem, seed: int, integer: bool, multiple: int = 1) -> tuple[inputs.Operands, Tensor]:
    """Operands and the float64 result, epilogue included. multiple: of what integer filters are multiples."""
    operands = inputs.make(problem, seed, integer, multiple)
    exact = reference.conv2d(problem, **_double(problem, operands))
    return operands, reference.epilogue(problem, exact, operands.bias, operands.residual)


def run_guarded(
    kernel: Kernel,
    problem: Problem,
    operands: inputs.Operands,
    offset: int = 0,
    weight_channels_last: bool = False,
    weight_gap: int = 0,
    threads: int = 0,
) -> Tensor:
    """The kernel's result; AssertionError when it wrote anything else."""
    name = inputs.written(problem)
    shape = list(inputs.shapes(problem)[name])
    weight_format = torch.channels_last if weight_channels_last else torch.contiguous_format
    format = weight_format if name == "w" else inputs.memory_format(problem)
    channels = None
    if problem.out_channels:
        channels = slice(problem.out_offset, problem.out_offset + shape[1])
        shape[1] = problem.out_channels
    out = guard.GuardedOutput(tuple(shape), operands.first.dtype, format, offset, channels)
    tensors = operands.named(problem)
    if "w" in tensors:
        tensors["w"] = tensors["w"].contiguous(memory_format=weight_format)
    gaps = {"w": 0 if weight_channels_last else weight_gap}
    tensors = {key: guard.guarded(t, offset, gaps.get(key, 0)) for key, t in tensors.items()}
    kernel.run(problem, out=out.buffer, threads=threads, **tensors)
    violation = out.violation()
    assert violation is None, violation
    return out.tensor


def _double(problem: Problem, operands: inputs.Operands) -> dict[str, Tensor]:
    return dict(zip(inputs.operand_names(problem), (operands.first, operands.second), strict=True))


def _assert_equal(out: Tensor, expected: Tensor) -> None:
    wrong = out != expected
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements differ; at {first} the kernel gave {out[first].item()}, "
            f"exact is {expected[first].item()}."
        )


def _assert_bounded(problem: Problem, kernel: Kernel, operands: inputs.Operands, out: Tensor, expected: Tensor) -> None:
    size = sum_of_sizes(problem, kernel.algorithm, operands)
    limits = problem.dtype, inputs.terms(problem) + 2, kernel.algorithm, size, expected
    error, allowed = (out.double() - expected).abs(), tolerances.allowed(*limits)
    if (error > allowed).any():
        worst = int((error / allowed.clamp(min=1e-300)).argmax())
        raise AssertionError(
            f"The error {error.flatten()[worst].item():.3g} exceeds the bound {allowed.flatten()[worst].item():.3g} "
            f"at element {worst}."
        )
    if error.norm() > tolerances.allowed_l2(*limits):
        raise AssertionError(
            f"The error's norm {error.norm().item():.3g} exceeds {tolerances.allowed_l2(*limits):.3g}; the result has "
            f"norm {expected.norm().item():.3g}."
        )


def sum_of_sizes(problem: Problem, algorithm: str, operands: inputs.Operands) -> Tensor:
    """What errors are measured against: the sum of absolute products, bias and residual of each output."""
    if algorithm in tolerances.TILE:
        size = tolerances.winograd_size(problem, operands.first, operands.second, algorithm)
    else:
        size = reference.conv2d(problem, **{k: t.abs() for k, t in _double(problem, operands).items()})
    for extra in (operands.bias[:, None, None] if operands.bias is not None else None, operands.residual):
        if extra is not None:
            size = size + extra.double().abs()
    return size
