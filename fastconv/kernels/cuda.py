"""Rows for the CUDA C++ kernels. The extension's list (csrc/cuda/kernels.inc) is the source; nothing is repeated here.

They serve tensors on a GPU where this build holds device code for it, on torch's current stream. They stand behind
PyTorch's rows until measurements say otherwise; ``config(kernel="*_igemm_sm80")`` asks for one. The tests run all of
them in the emulator (fastconv/testing/emulator.py).
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cuda",)
OLDEST = 80  # the architecture whose instructions every kernel may use


def rows() -> list[Kernel]:
    """One row per line of csrc/cuda/kernels.inc, in its order."""
    return [
        Kernel(
            name=row["name"],
            op=row["op"],
            pass_=row["pass_"],
            devices=DEVICES,
            refuses=partial(_refuses, index, row["name"].rsplit("_", 1)[-1]),
            run=partial(_run, index),
            gpu=index,
        )
        for index, row in enumerate(C.gpu_kernels())
    ]


def device_code() -> str:
    """What this build holds, for people: its architectures, or why there are none."""
    held, missing = C.gpu_device_code()
    return ", ".join(f"sm_{name}" for name in held) if held else f"none: {missing}"


def refuses_machine(target: str) -> str | None:
    """Why kernels of ``target`` ("simt", "sm80", "sm90a") run on no tensor here, or None.

    Every GPU of the process must be served: a kernel is chosen for a kind of device, not for one of them.
    """
    held, missing = C.gpu_device_code()
    if not held:
        return f"This build has no device code: {missing}."
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU here."
    if target.endswith("a") and target.removeprefix("sm") not in held:
        return f"It needs device code for sm_{target.removeprefix('sm')}, but this build's is for {device_code()}."
    for i in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(i)
        capability = 10 * major + minor
        name = f"GPU {i}, {torch.cuda.get_device_name(i)}, is sm_{capability}"
        if not any(serves(code, capability) for code in held):
            return f"This build's device code is for {device_code()}, but {name}."
        if not serves(_needs(target), capability):
            return f"It is made for sm_{_needs(target)}, but {name}."
    return None


def serves(code: str, capability: int) -> bool:
    """Whether device code for an architecture ("80", "90a") runs on a GPU: that of features on its own kind alone,
    other code on all later ones, for which the driver translates it.
    """
    number = int(re.match(r"\d+", code)[0])
    return capability == number if code.endswith("a") else capability >= number


def _needs(target: str) -> str:
    return target.removeprefix("sm") if re.fullmatch(r"sm\d+a?", target) else str(OLDEST)


def _refuses(row: int, target: str, problem: Problem) -> str | None:
    return C.gpu_refuses(row, problem) or refuses_machine(target)


def _run(row: int, problem: Problem, *, threads: int = 0, **operands: Any) -> Tensor:
    """Runs this kernel and no other, on the current stream of its tensors' device; ``threads`` is for the CPU's.

    ``out``, where it is given, is written and returned. Raises RuntimeError where this build has no device code, and
    for operands that lie elsewhere.
    """
    return C.gpu_run(row, problem, **operands)
