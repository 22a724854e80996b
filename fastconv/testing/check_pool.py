"""One check of one pooling kernel on one problem: guarded buffers and the oracle. Max pools and their indices must be
equal to the last bit, sums and averages within a bound of the float64 result.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastconv import reference_pool
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import guard, tolerances
from fastconv.testing.inputs import DTYPES, guarded_output, memory_format, shapes

INDEX_DTYPES = {"u8": torch.uint8, "i64": torch.int64}
KINDS = ("ties", "normal", "special")


def values(shape: tuple[int, ...], kind: str, seed: int) -> Tensor:
    """Float64 test data. ties: a few integers; normal: real numbers; special: both zeros, infinities and NaNs too."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    integers = torch.randint(-2, 3, shape, generator=generator).double()
    if kind == "special":
        pick = torch.rand(shape, generator=generator)
        for limit, value in ((0.7, -math.inf), (0.15, -0.0), (0.1, math.inf), (0.05, math.nan)):
            integers = torch.where(pick < limit, value, integers)
    return integers


def check_pool(
    kernel: Kernel, problem: Problem, *, kind: str, seed: int = 0, offset: int = 0, threads: int = 0
) -> None:
    """Runs a native pooling kernel between guards; AssertionError with one sentence when anything is wrong.

    kind: which data, see :func:`values`; "special" is for max pools and unpooling only.
    offset: elements by which every buffer is off alignment.
    """
    inputs, expected, expected_index, terms = case(problem, kind, seed)
    fprop = problem.pass_ == "fprop"
    writes_index = fprop and problem.index != "none" and problem.op != "unpool2d"
    if fprop:
        out = guarded_output(problem, offset)
    else:
        out = guard.GuardedOutput(tuple(expected.shape), DTYPES[problem.dtype], memory_format(problem), offset)
    index = None
    tensors = {name: guard.guarded(_layout(problem, t), offset) for name, t in inputs.items()}
    if writes_index:
        index = guard.GuardedOutput(tuple(expected.shape), INDEX_DTYPES[problem.index], memory_format(problem), offset)
        tensors["index"] = index.tensor
    kernel.run(problem, out=out.buffer, threads=threads, **tensors)
    for buffer in (out, index):
        violation = buffer.violation() if buffer is not None else None
        assert violation is None, violation
    if terms == 0:
        _assert_bits(out.tensor, expected.to(out.tensor.dtype), "value")
    else:
        _assert_bounded(problem, out.tensor, expected, terms)
    if index is not None:
        inside = expected_index >= 0  # a window without any input element has no meaningful index
        got = index.tensor.long()
        limit = 255 if problem.index == "u8" else problem.h.size * problem.w.size
        assert ((got >= 0) & (got < limit)).all(), "An index points outside its plane or window."
        _assert_bits(torch.where(inside, got, -1), torch.where(inside, expected_index, -1), "index")


def _layout(problem: Problem, t: Tensor) -> Tensor:
    return t.contiguous(memory_format=memory_format(problem))


@lru_cache(maxsize=1)  # every kernel of one algorithm is held against one result
def case(problem: Problem, kind: str, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor | None, tuple | int]:
    """Inputs, float64 result, expected index, and the bound: 0 for bit equality, else (result of magnitudes, terms)."""
    sizes = shapes(problem)
    dtype = DTYPES[problem.dtype]
    fprop = problem.pass_ == "fprop"
    data = values(sizes["x" if fprop else "y"], kind, seed).to(dtype)
    if problem.op == "unpool2d":
        generator = torch.Generator().manual_seed(seed + 1)
        index = torch.randint(problem.h.out * problem.w.out, sizes["x"], generator=generator)
        call = reference_pool.unpool if fprop else reference_pool.unpool_gradient
        return {"x" if fprop else "y": data, "index": index}, call(problem, data, index), None, 0
    if "max" in problem.op:
        if fprop:
            expected, index = reference_pool.max_pool(problem, data)
            return {"x": data}, expected, index, 0
        x = values(sizes["x"], "special" if seed % 2 else "ties", seed + 1)
        index = reference_pool.max_pool(problem, x)[1].clamp(min=0).to(INDEX_DTYPES[problem.index])
        expected = reference_pool.max_pool_gradient(problem, data, index)
        size = reference_pool.max_pool_gradient(problem, data.abs(), index)
        return {"y": data, "index": index}, expected, None, (size, _windows_per_input(problem))
    call = reference_pool.average if fprop else reference_pool.average_gradient
    positive = problem if problem.divisor_override >= 0 else problem.replace(divisor_override=-problem.divisor_override)
    terms = _largest_window(problem) if fprop else _windows_per_input(problem)
    return {"x" if fprop else "y": data}, call(problem, data), None, (call(positive, data.abs()), terms)


def _largest_window(problem: Problem) -> int:
    axes = (problem.h, problem.w)
    return math.prod(max(len(v.taps) for v in reference_pool.windows(problem, axis)) for axis in axes)


def _windows_per_input(problem: Problem) -> int:
    """How many windows may cover one input element."""
    counts = []
    for axis in (problem.h, problem.w):
        covering = [0] * axis.size
        for window in reference_pool.windows(problem, axis):
            for _, i in window.taps:
                covering[i] += 1
        counts.append(max(covering))
    return math.prod(counts)


def _assert_bits(got: Tensor, expected: Tensor, what: str) -> None:
    """Equal values, equal signs of zeros, NaN where NaN is expected."""
    wrong = (got != expected) & ~(got.isnan() & expected.isnan())
    if got.is_floating_point():
        wrong |= (got.signbit() != expected.signbit()) & ~expected.isnan()
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements of the {what} differ; at {first} the kernel gave "
            f"{got[first].item()}, exact is {expected[first].item()}."
        )


def _assert_bounded(problem: Problem, got: Tensor, expected: Tensor, bound: tuple[Tensor, int]) -> None:
    size, terms = bound
    # The divisions round once each, beside the sums.
    allowed = (tolerances.relative_bound(problem.dtype, terms + 2)) * size + torch.finfo(got.dtype).tiny
    wrong = ~((got.double() - expected).abs() <= allowed)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements exceed the bound; at {first} the kernel gave "
            f"{got[first].item()}, exact is {expected[first].item()}, allowed {allowed[first].item():.3g}."
        )
