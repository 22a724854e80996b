"""A kernel of two convolutions against the float64 reference of one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastconv import reference
from fastconv.problem import Problem
from fastconv.testing import fuzz, guard, inputs, tolerances

EXACT = {"none", "relu", "relu6"}  # activations that keep integers
MAX_FLOPS, MAX_PIXELS = 3e5, 500  # of a random depthwise problem


def behind(first: Problem, k: int, ending: str = "") -> Problem:
    """A 1x1 convolution to ``k`` channels of what the first makes; ``ending``: its epilogue and slice."""
    return Problem(f"n{first.n}c{first.k}h{first.h.out}w{first.w.out}_k{k}r1s1_{first.dtype}{first.layout}{ending}")


def is_exact(first: Problem, second: Problem) -> bool:
    """Whether integers stay integers through both."""
    return {first.activation, second.activation} <= EXACT


def random_pairs(rng: random.Random) -> Iterator[tuple[Problem, Problem]]:
    """Depthwise convolutions of every kind, each with something behind it."""
    while True:
        first = fuzz.random_problem(rng, max_flops=MAX_FLOPS, pass_="fprop")
        if first.is_depthwise and first.n * first.h.out * first.w.out <= MAX_PIXELS and not first.in_channels:
            first = first.replace(residual=False, out_channels=0, out_offset=0)
            yield first, behind(first, rng.choice(fuzz.CHANNELS), rng.choice(("", "_bias_relu", "_bias_res", "_silu")))


def check_pair(
    run: Callable[..., Any], first: Problem, second: Problem, number: int, integer: bool, **options: Any
) -> None:
    """Equality on integers, where the depthwise result is rounded once too; else the bound of both sums.

    run: called with both problems, the operands (``fastconv.kernels.pairs``), out and the options. number: seeds the
    values, and says how far off alignment operands and result begin.
    """
    one, two = inputs.make(first, number, integer), inputs.make(second, number + 1, integer)
    out = inputs.guarded_output(second, number % 16)
    hidden = _exact(first, one.first, one.second, one.bias)
    stored = hidden.to(one.first.dtype)
    expected = _exact(second, stored if integer else hidden, two.second, two.bias, two.residual)
    operands = {"x": one.first, "w": one.second, "filter": two.second}
    operands |= {"depthwise_bias": one.bias, "bias": two.bias, "residual": two.residual}
    operands = {name: guard.guarded(t, number % 16) for name, t in operands.items() if t is not None}
    run(first, second, **operands, out=out.buffer, **options)
    case = f"{first} then {second}, {number=}, {integer=}"
    assert out.violation() is None, f"{case}: {out.violation()}"
    assert not out.tensor.isnan().any(), f"{case}: not written, or read outside"
    if integer and is_exact(first, second):
        assert torch.equal(out.tensor, expected.to(out.tensor.dtype)), case
        return
    sizes = _exact(first.replace(activation="none"), one.first.abs(), one.second.abs(), _size(one.bias))
    # An activation is at most 1.2 times as steep as its input, sigmoid(0) is a half.
    sizes = tolerances.LARGEST_SLOPE * sizes + 0.5
    sizes = _exact(second.replace(activation="none"), sizes, two.second.abs(), _size(two.bias), _size(two.residual))
    terms = inputs.terms(first) + inputs.terms(second) + 8
    allowed = tolerances.allowed(second.dtype, terms, "direct", sizes, expected, roundings=2)
    assert ((out.tensor.double() - expected).abs() <= allowed).all(), case


def _exact(
    problem: Problem, x: Tensor, w: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    return reference.epilogue(problem, reference.conv2d(problem, x=x, w=w), bias, residual)


def _size(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.abs()
