"""The GPU kernels as rows that run in the emulator, on CPU tensors: for the tests, which treat them as any kernel."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import guard


def rows() -> list[Kernel]:
    """One row per line of csrc/cuda/kernels.inc, under the same name."""
    return [
        Kernel(row["name"], row["op"], row["pass_"], ("cpu",), partial(_refuses, index), partial(_run, index))
        for index, row in enumerate(C.gpu_kernels())
    ]


def kernel(name: str) -> Kernel:
    """The emulated kernel of that name."""
    return next(row for row in rows() if row.name == name)


def _refuses(row: int, problem: Problem) -> str | None:
    return C.gpu_refuses(row, problem) or None


def _run(row: int, problem: Problem, *, out: Tensor, threads: int = 0, **operands: Tensor) -> Tensor:
    """Runs the kernel, writing ``out``. threads: seeds the order of blocks and threads, which must not matter.

    The workspace is poisoned and lies between guards. Raises RuntimeError with a sentence for what a GPU would leave
    undefined (csrc/cuda/emulator/block.h).
    """
    size = C.gpu_workspace(row, problem)
    workspace = guard.guarded_bytes(size)
    around = workspace.as_strided((size + 2 * guard.HALO_BYTES,), (1,), 0)
    C.gpu_emulate(row, problem, out, workspace=workspace, seed=threads, **operands)
    halo = torch.cat([around[: guard.HALO_BYTES], around[guard.HALO_BYTES + size :]])
    assert (halo == guard.POISON).all(), "The kernel wrote outside its workspace."
    return out
