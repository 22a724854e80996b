"""What a local response norm must make of its operands; :mod:`fastconv.testing.check_norm` runs the kernels."""

from __future__ import annotations

import torch

from fastconv import reference_norm
from fastconv.kernels.aten_norm import RESPONSE
from fastconv.problem import Problem
from fastconv.testing import tolerances
from fastconv.testing.inputs import DTYPES
from fastconv.testing.norm_case import SHIFT, STEPS, Case, activation

# alpha, beta, k: torch's own; then windows that weigh as much as k, with roots and with powers that are none.
RESPONSES = (RESPONSE, (1.0, 0.75, 2.0), (2.0, 0.5, 1.0), (0.5, 1.0, 1.0), (1.5, 0.6, 0.5), (0.25, -0.75, 1.0))


def case(problem: Problem, kind: str, seed: int) -> Case:
    """The same for the same arguments. integers: s = k + the squares of the window is an integer, and beta is 1 or a
    root of it; the other kinds take the numbers from the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    response = RESPONSES[seed % len(RESPONSES)]
    if kind == "integers":
        response = (float(problem.size), (0.75, 0.5, 1.0)[seed % 3], 1.0)
    alpha, beta, k = response
    x = activation(problem, kind, generator)
    tensors = {"x": x}
    # s is a sum of positive terms, so its relative error is theirs, times the exponent; a power takes it at most twice.
    terms = min(problem.size, problem.c) + STEPS
    if problem.pass_ == "fprop":
        if problem.residual:
            tensors["residual"] = activation(problem, kind, generator)
        expected = reference_norm.respond(problem, x, tensors.get("residual"), *response)
        size = (x.double() * reference_norm.response_base(problem, x, alpha, k) ** -beta).abs()
        if problem.residual:
            size = size + tensors["residual"].double().abs()
        allowed = tolerances.allowed(problem.dtype, terms, "direct", size, expected)
    else:
        tensors["y"] = dy = activation(problem, kind, generator) - (SHIFT if kind == "shifted" else 0)
        expected, size = reference_norm.response_gradient(problem, dy, x, *response)
        allowed = tolerances.relative_bound(problem.dtype, 2 * terms) * size + torch.finfo(DTYPES[problem.dtype]).tiny
    return Case(tensors, {"response": response}, expected, allowed, None, None, size)
