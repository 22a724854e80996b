"""One check of one kernel of what works on rows of channels (layer norm, softmax, copies, attention) on one problem:
guarded buffers and the float64 oracle, within a bound; copies by equality.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastconv import reference_rows
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import guard, inputs, tolerances
from fastconv.testing.inputs import DTYPES
from fastconv.testing.norm_case import EPS, SHIFT, Case, arithmetic

# special: NaN and infinities among integers, rows of minus infinities alone; shifted: rows whose mean is a hundred
# times their deviation.
KINDS = ("integers", "normal", "special", "shifted")
STEPS = 8  # roundings of a result beside those of its sums


def terms(problem: Problem) -> int:
    """How many terms the longest sum of a result has, and its other roundings."""
    if problem.op == "attention":
        return max(problem.c // problem.groups, problem.h.window) + STEPS
    return problem.c + STEPS


def values(shape: tuple[int, ...], kind: str, generator: torch.Generator) -> Tensor:
    """Float64 test data of a kind; rows lie along the second axis."""
    if kind in ("normal", "shifted"):
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn + (SHIFT if kind == "shifted" else 0)
    drawn = torch.randint(-2, 3, shape, generator=generator).double()
    if kind == "special":
        rows = torch.rand((shape[0], 1, *shape[2:]), generator=generator)
        pick = torch.rand(shape, generator=generator)
        drawn = torch.where(pick < 0.3, -math.inf, drawn)
        drawn = torch.where((pick < 0.4) & (rows < 0.2), math.inf, drawn)
        drawn = torch.where((pick < 0.5) & (rows > 0.8), math.nan, drawn)
        drawn = torch.where((rows > 0.4) & (rows < 0.6), -math.inf, drawn)
    return drawn


@lru_cache(maxsize=1)  # every kernel of one algorithm is held against one result
def case(problem: Problem, kind: str, seed: int, affine: bool = True) -> Case:
    """The same for the same arguments. x is the whole buffer, NaN beside the slice."""
    generator = torch.Generator().manual_seed(seed)
    if problem.op == "attention":
        return _attention_case(problem, kind, generator)
    x = values(inputs.shapes(problem)["x"], kind, generator).to(DTYPES[problem.dtype])
    tensors, numbers = {"x": inputs.in_buffer(problem, x)}, {}
    exact = x.double()
    if problem.op == "layernorm2d":
        if affine:
            plain = "normal" if kind in ("special", "shifted") else kind
            tensors |= {
                name: values((1, problem.c), plain, generator)[0].to(arithmetic(problem)) for name in ("w", "bias")
            }
        numbers = {"eps": EPS}
        w, bias = tensors.get("w"), tensors.get("bias")
        expected = reference_rows.layer_norm(problem, tensors["x"], w, bias, EPS)
        off = exact - exact.mean(1, keepdim=True)
        deviation = (off.square().mean(1, keepdim=True) + EPS).sqrt()
        size = (exact.abs() + exact.abs().mean(1, keepdim=True)) / deviation
        if affine:
            size = size * w.double().abs()[:, None, None] + bias.double().abs()[:, None, None]
    elif problem.op == "softmax2d":
        expected = reference_rows.softmax(problem, tensors["x"])
        # An error of the argument is a relative one of the power; infinite ones have none.
        finite = exact.abs().nan_to_num(nan=0.0, posinf=0.0)
        size = expected * (1 + finite + finite.amax(1, keepdim=True))
    else:
        expected = size = exact
    return _finished(problem, tensors, numbers, expected, size)


def _attention_case(problem: Problem, kind: str, generator: torch.Generator) -> Case:
    dtype, heads = DTYPES[problem.dtype], problem.groups
    plain = "integers" if kind == "special" else "normal" if kind == "shifted" else kind

    def tokens(count: int, channels: int) -> Tensor:
        """(N, heads, tokens, channels), in memory token by token."""
        drawn = values((problem.n, count, heads, channels // heads), plain, generator)
        if kind == "special":
            drawn = torch.where(torch.rand(drawn.shape, generator=generator) < 0.002, math.nan, drawn)
        return drawn.to(dtype).transpose(1, 2)

    queries, count = problem.h.size, problem.h.window
    tensors = {
        "x": tokens(queries, problem.c),
        "keys": tokens(count, problem.c),
        "values": tokens(count, problem.k),
    }
    if problem.mask:
        drawn = values((problem.n * queries, count, heads), kind, generator)
        drawn = drawn.nan_to_num(nan=0.0, posinf=0.0, neginf=-math.inf)
        tensors["mask"] = drawn.view(problem.n, queries, count, heads).permute(0, 3, 1, 2).to(dtype).contiguous()
    factor = (problem.c // heads) ** -0.5 if problem.c else 1.0
    mask = tensors.get("mask")
    expected = reference_rows.attention(tensors["x"], tensors["keys"], tensors["values"], mask, factor)
    # The scores' errors are relative ones of the weights.
    scores = reference_rows.scores(tensors["x"].abs(), tensors["keys"].abs(), None, factor)
    if mask is not None:
        scores = scores + mask.double().abs().nan_to_num(posinf=0.0)
    most = scores.amax(-1, keepdim=True) if count else scores
    weight = reference_rows.weights(reference_rows.scores(tensors["x"], tensors["keys"], mask, factor))
    size = torch.einsum("nhts,nhsc->nhtc", weight, tensors["values"].double().abs()) * (1 + 4 * most)
    size = size.permute(0, 1, 3, 2).flatten(1, 2)[..., None]
    return _finished(problem, tensors, {"factor": factor}, expected, size)


def _finished(problem: Problem, tensors: dict, numbers: dict, expected: Tensor, size: Tensor) -> Case:
    size = size.nan_to_num(0.0, 0.0, 0.0)
    allowed = tolerances.allowed(problem.dtype, terms(problem), "direct", size, expected.nan_to_num(0.0, 0.0, 0.0))
    if problem.op == "copy2d":
        allowed = torch.zeros_like(size)
    return Case(tensors, numbers, expected, allowed, None, None, size)


def check_rows(
    kernel: Kernel,
    problem: Problem,
    *,
    kind: str,
    seed: int = 0,
    offset: int = 0,
    threads: int = 0,
    affine: bool = True,
) -> None:
    """Runs a native kernel between guards; AssertionError with one sentence when anything is wrong.

    kind: which data, one of ``KINDS``. offset: elements by which every buffer is off alignment. affine: a layer norm
    with weight and bias.
    """
    run = case(problem, kind, seed, affine)
    out = inputs.guarded_output(problem, offset)
    tensors = {name: guard.guarded(t, offset) for name, t in run.tensors.items()}
    kernel.run(problem, out=out.buffer, threads=threads, **run.numbers, **tensors)
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
