"""Rows for the C++ kernels. The extension's own list (csrc/cpu/kernels.inc) is the source; nothing is repeated here."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastconv import settings
from fastconv._native import C
from fastconv.kernels.aten_norm import EPS, RESPONSE
from fastconv.problem import Problem
from fastconv.registry import Kernel


def rows() -> list[Kernel]:
    """One row per native kernel, in the extension's order."""
    return [
        Kernel(
            name=row["name"],
            op=row["op"],
            pass_=row["pass_"],
            devices=("cpu",),
            refuses=partial(_refuses, index),
            run=partial(_run, index),
            native=index,
            estimate=partial(C.estimate, index),
        )
        for index, row in enumerate(C.kernels())
    ]


def pack(row: int, problem: Problem, w: Tensor, packed: Tensor | None = None) -> Tensor:
    """The filter ``w``, of any strides, in the form in which kernel ``row`` reads it in a packed problem: bytes.

    packed: where they are written; None: new memory.
    """
    if packed is None:
        size, _ = C.packed_form(row, problem)
        packed = torch.empty(size, dtype=torch.uint8)
    C.pack(row, problem, w, packed)
    return packed


def _refuses(row: int, problem: Problem) -> str | None:
    return C.refuses(row, problem, settings.current().isa) or None


def _run(
    row: int,
    problem: Problem,
    *,
    out: Tensor,
    x: Tensor | None = None,
    w: Tensor | None = None,
    y: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    index: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    stats: Tensor | None = None,
    scale: Tensor | None = None,
    packed: Tensor | None = None,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    mask: Tensor | None = None,
    eps: float = EPS,
    response: tuple[float, float, float] = RESPONSE,
    factor: float | None = None,
    threads: int = 0,
) -> Tensor:
    """Runs this kernel and no other, writing ``out``; ``threads=0`` means as many as torch uses.

    A packed problem takes ``packed``, from :func:`pack`, in place of ``w``; without it the filter is packed here.
    """
    if problem.packed and packed is None:
        packed, w = pack(row, problem, w), None
    if factor is None:  # as torch has it
        factor = max(1, problem.c // problem.groups) ** -0.5
    given = (x, w, y, bias, residual, index, mean, variance, stats, scale, packed, keys, values, mask)
    C.run_kernel(row, problem, out, *given, eps, response, factor, threads)
    return out
