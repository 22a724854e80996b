"""Kernels of two convolutions, the second of the first's result, which is never stored: a depthwise one and a 1x1.

They are no rows, which compute one problem; ``functional.depthwise_pointwise`` asks :func:`choose` for one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from fastconv import settings
from fastconv._native import C
from fastconv.kernels import cuda, triton
from fastconv.problem import Problem


@dataclass(frozen=True)
class Pair:
    """One kernel: ``refuses(first, second)`` is a sentence or None, ``run(first, second, **operands)`` the result.

    Operands: x, w and depthwise_bias of the first problem; filter, bias and residual of the second; out, where it is
    given, is written and returned.
    """

    name: str
    devices: tuple[str, ...]
    refuses: Callable[[Problem, Problem], str | None]
    run: Callable[..., Tensor]
    deterministic: ClassVar[bool] = True
    spreads_nan: ClassVar[bool] = False


def pairs() -> list[Pair]:
    """All of them in order of preference: CUDA C++ in the order of csrc/cuda/kernels.inc, then Triton's."""
    found = [
        Pair(name, cuda.DEVICES, partial(_refuses, index, name.rsplit("_", 1)[-1]), partial(C.gpu_pair_run, index))
        for index, name in enumerate(C.gpu_pairs())
    ]
    # Interpreted, Triton takes tensors of the CPU.
    return [*found, Pair("dwconv2d/fprop_gemm1x1_triton", ("cuda", "cpu"), _refuses_triton, _run_triton)]


def choose(first: Problem, second: Problem, device: str = "cuda") -> Pair:
    """The first that takes both problems under the settings in force; where their patterns leave none, of all, unless
    they are strict. RuntimeError with every kernel's sentence where none does.
    """
    active, reasons = settings.current(), []
    taking = []
    for pair in pairs():
        if device not in pair.devices:
            reason = f"It runs on {' and '.join(pair.devices)} tensors, not on {device}."
        else:
            reason = pair.refuses(first, second)
        if reason is None:
            taking.append(pair)
            reason = active.refuses(pair)
        reasons.append(f"{pair.name}: {reason}")
    named = [pair for pair in taking if active.refuses(pair) is None]
    if named or (taking and not active.strict):
        return (named or taking)[0]
    raise RuntimeError(f"No kernel takes {first} and {second} together. {' '.join(reasons)}")


def _refuses(row: int, target: str, first: Problem, second: Problem) -> str | None:
    return C.gpu_pair_refuses(row, first, second) or cuda.refuses_machine(target)


def _refuses_triton(first: Problem, second: Problem) -> str | None:
    return triton.missing() or triton.load("dw_pw").refuses(first, second)


def _run_triton(first: Problem, second: Problem, **operands: Any) -> Tensor:
    y, launches = triton.load("dw_pw").plan(first, second, **operands)
    for launch in launches:
        launch()
    return y
