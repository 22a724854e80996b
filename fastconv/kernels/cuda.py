"""Rows for the CUDA C++ kernels. The extension's list (csrc/cuda/kernels.inc) is the source; nothing is repeated here.

They stand behind PyTorch's rows, and refuse every problem of a tensor on a GPU: no build of this library holds their
device code yet. The tests run them in the emulator (fastconv/testing/emulator.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from fastconv._native import C
from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cuda",)
NO_DEVICE_CODE = "This build has no device code of the CUDA kernels; their sources run in the emulator only."


def rows() -> list[Kernel]:
    """One row per line of csrc/cuda/kernels.inc, in its order."""
    return [
        Kernel(row["name"], row["op"], row["pass_"], DEVICES, partial(_refuses, index), _run)
        for index, row in enumerate(C.gpu_kernels())
    ]


def _refuses(row: int, problem: Problem) -> str | None:
    return C.gpu_refuses(row, problem) or NO_DEVICE_CODE


def _run(problem: Problem, **operands: Any) -> Tensor:
    raise RuntimeError(f"{problem}: {NO_DEVICE_CODE}")
