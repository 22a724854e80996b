"""The GPU kernels as rows that take CPU tensors and run on a GPU: the checks that emulate them then prove them there.

Every operand travels with its whole storage, so that the guards around it (guard.py) stand around it on the GPU too, at
the same offset from alignment.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fastconv import registry
from fastconv.kernels.pairs import Pair
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing.inputs import DTYPES

DEVICE = "cuda"


def rows(device: str = DEVICE) -> list[Kernel]:
    """CUDA C++ and Triton kernels of the list, under their own names."""
    return [
        through(kernel, device) for kernel in registry.kernels() if kernel.devices == (DEVICE,) and not kernel.is_torch
    ]


def through(kernel: Kernel, device: str = DEVICE) -> Kernel:
    """The kernel with operands that travel to ``device`` and results that travel back."""
    return replace(kernel, devices=("cpu",), run=partial(_run, kernel, device), gpu=None)


def pair_through(pair: Pair, device: str = DEVICE) -> Pair:
    """The same for a kernel of two problems."""
    return replace(pair, devices=("cpu",), run=partial(_run_pair, pair, device))


def whole(tensor: Tensor) -> Tensor:
    """All that lies in the tensor's storage, in one row."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def moved(tensor: Tensor, device: str) -> Tensor:
    """The tensor as a view of a copy of its whole storage."""
    copy = whole(tensor).to(device, copy=True)
    return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _run(kernel: Kernel, device: str, problem: Problem, *, out: Tensor, threads: int = 0, **operands: Tensor) -> Tensor:
    """Runs the kernel and writes ``out``, with everything around it, and the index that a max pool writes."""
    there = {name: moved(t, device) if isinstance(t, Tensor) else t for name, t in operands.items()}
    target = moved(out, device)
    result = kernel.run(problem, out=target, threads=threads, **there)
    _bring(f"{kernel.name} on {problem}", result, target, out)
    for name in ("index", "stats"):
        if isinstance(operands.get(name), Tensor):
            whole(operands[name]).copy_(whole(there[name]))
    return out


def _run_pair(pair: Pair, device: str, *problems: Problem, out: Tensor, **operands: Tensor) -> Tensor:
    target = moved(out, device)
    result = pair.run(*problems, out=target, **{name: moved(t, device) for name, t in operands.items()})
    _bring(f"{pair.name} on {' and '.join(map(str, problems))}", result, target, out)
    return out


def _bring(what: str, result: Tensor, target: Tensor, out: Tensor) -> None:
    if result.untyped_storage().data_ptr() != target.untyped_storage().data_ptr():
        raise RuntimeError(f"{what} did not write the tensor it was given.")
    whole(out).copy_(whole(target))


def accepts(kernel: Kernel, problem: Problem) -> bool:
    """Whether a check of the kernel on the problem has any meaning."""
    return problem.dtype in DTYPES and kernel.computes(problem) and kernel.refuses(problem) is None
