"""One check of one kernel of what lies between convolutions (map, reorder, interpolation) on one problem: guarded
buffers and the float64 oracle, by equality where every step is exact, else within a bound.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastconv import reference_map
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import guard, inputs, tolerances
from fastconv.testing.inputs import DTYPES
from fastconv.testing.norm_case import Case

# integers: small ones, so that all but interpolation is exact; special: NaN and infinities among them.
KINDS = ("integers", "normal", "special")
STEPS = 4  # roundings of a result: weights or the product, the sum, the residual's


def values(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    """Float64 test data of a kind."""
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    integers = torch.randint(-2, 3, shape, generator=generator).double()
    if kind == "special":
        pick = torch.rand(shape, generator=generator)
        for limit, value in ((0.3, -math.inf), (0.2, math.inf), (0.1, math.nan)):
            integers = torch.where(pick < limit, value, integers)
    return integers


@lru_cache(maxsize=1)  # every kernel of one algorithm is held against one result
def case(problem: Problem, kind: str, seed: int) -> Case:
    """The same for the same arguments. x is the whole buffer, NaN beside the slice."""
    generator = torch.Generator().manual_seed(seed)
    dtype, format = DTYPES[problem.dtype], inputs.memory_format(problem)
    x = values(inputs.shapes(problem)["x"], kind, generator).to(dtype)
    tensors = {"x": inputs.in_buffer(problem, x)}
    if problem.scale:
        tensors["scale"] = values((problem.n, problem.c), kind, generator).to(dtype)
    if problem.residual:
        residual = values(inputs.shapes(problem)["y"], kind, generator).to(dtype)
        tensors["residual"] = residual.contiguous(memory_format=format)
    exact = problem.op == "reorder2d"
    if problem.op == "bilinear2d":
        expected, size = (reference_map.interpolate(problem, t) for t in (tensors["x"], tensors["x"].abs()))
    elif problem.op == "nearest2d":
        exact, expected = True, reference_map.nearest(problem, tensors["x"])
        size = expected
    elif exact:
        expected = size = x.double()
    else:
        extra = {name: tensors.get(name) for name in ("scale", "residual")}
        expected = reference_map.map_(problem, tensors["x"], **extra)
        plain = problem.replace(activation="none")
        size = reference_map.map_(
            plain, tensors["x"].abs(), **{k: None if t is None else t.abs() for k, t in extra.items()}
        )
        exact = kind != "normal" and problem.activation in ("none", "relu", "relu6")
    allowed = torch.zeros_like(size) if exact else tolerances.allowed(problem.dtype, STEPS, "direct", size, expected)
    return Case(tensors, {}, expected, allowed, None, None, size)


def check_map(kernel: Kernel, problem: Problem, *, kind: str, seed: int = 0, offset: int = 0, threads: int = 0) -> None:
    """Runs a native kernel between guards; AssertionError with one sentence when anything is wrong.

    kind: which data, one of ``KINDS``. offset: elements by which every buffer is off alignment.
    """
    run = case(problem, kind, seed)
    out = inputs.guarded_output(problem, offset)
    kernel.run(
        problem, out=out.buffer, threads=threads, **{name: guard.guarded(t, offset) for name, t in run.tensors.items()}
    )
    violation = out.violation()
    assert violation is None, violation
    got = out.tensor.double()
    right = (got == run.expected) | (got.isnan() & run.expected.isnan()) | ((got - run.expected).abs() <= run.allowed)
    if not right.all():
        first = tuple((~right).nonzero()[0].tolist())
        raise AssertionError(
            f"{int((~right).sum())} of {right.numel()} elements are wrong; at {first} the kernel gave "
            f"{got[first].item()}, exact is {run.expected[first].item()}, allowed {run.allowed[first].item():.3g}."
        )
