"""The GPU kernels as rows that run in the emulator, on CPU tensors: for the tests, which treat them as any kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.kernels.pairs import Pair
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


def pairs() -> list[Pair]:
    """The kernels of two problems likewise."""
    return [
        Pair(name, ("cpu",), partial(_refuses_pair, index), partial(_run_pair, index))
        for index, name in enumerate(C.gpu_pairs())
    ]


def _refuses(row: int, problem: Problem) -> str | None:
    return C.gpu_refuses(row, problem) or None


def _run(row: int, problem: Problem, *, out: Tensor, threads: int = 0, **operands: Tensor) -> Tensor:
    """Runs the kernel, writing ``out``. threads: seeds the order of blocks and threads, which must not matter.

    The workspace is poisoned and lies between guards. Raises RuntimeError with a sentence for what a GPU would leave
    undefined (csrc/cuda/emulator/block.h).
    """
    with _workspace(C.gpu_workspace(row, problem)) as workspace:
        C.gpu_emulate(row, problem, out, workspace=workspace, seed=threads, **operands)
    return out


def _refuses_pair(row: int, first: Problem, second: Problem) -> str | None:
    return C.gpu_pair_refuses(row, first, second) or None


def _run_pair(
    row: int, first: Problem, second: Problem, *, out: Tensor, threads: int = 0, **operands: Tensor
) -> Tensor:
    with _workspace(C.gpu_pair_workspace(row, first, second)) as workspace:
        C.gpu_pair_emulate(row, first, second, out, workspace=workspace, seed=threads, **operands)
    return out


@contextmanager
def _workspace(size: int) -> Iterator[Tensor]:
    """So many poisoned bytes between guards, which must be whole afterwards."""
    workspace = guard.guarded_bytes(size)
    around = workspace.as_strided((size + 2 * guard.HALO_BYTES,), (1,), 0)
    yield workspace
    halo = torch.cat([around[: guard.HALO_BYTES], around[guard.HALO_BYTES + size :]])
    assert (halo == guard.POISON).all(), "The kernel wrote outside its workspace."
