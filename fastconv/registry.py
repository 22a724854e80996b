"""The one list of kernels, in order of preference. Everything that names kernels reads it from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fastconv.problem import Problem


@dataclass(frozen=True)
class Kernel:
    """One row: what it is called, what it computes, and why it would not.

    name: ``family/pass_algorithm_target``, for example ``conv2d/fprop_igemm_avx2``.
    op, pass_: what it computes; "*" stands for all of them.
    devices: device types it runs on.
    refuses: None when it accepts the problem, else one sentence with the values in it.
    run: ``run(problem, *, x, w, y, bias, residual, index, out=None) -> Tensor`` on tensors that lie densely in the
        problem's layout; for norms also mean, variance, stats, eps and response (csrc/core/kernel.h). ``out``, where a
        kernel takes it, is written and returned.
    estimate: ``estimate(problem, threads)``, seconds on a nominal core for kernels that are compared by cost, or None
        where the order of the list alone decides.
    native: position in the extension's own list, or None for a row that lives in Python or on a GPU.
    gpu: position in the extension's list of CUDA C++ kernels, or None.
    """

    name: str
    op: str
    pass_: str
    devices: tuple[str, ...]
    refuses: Callable[[Problem], str | None] = field(repr=False)
    run: Callable[..., Any] = field(repr=False)
    native: int | None = None
    gpu: int | None = None
    estimate: Callable[[Problem, int], float | None] = field(default=lambda *_: None, repr=False)

    def computes(self, problem: Problem) -> bool:
        """Whether the row is for this problem's op and pass at all."""
        return self.op in ("*", problem.op) and self.pass_ in ("*", problem.pass_)

    @property
    def target(self) -> str:
        """The end of the name: an instruction set, or "aten"."""
        return self.name.rsplit("_", 1)[-1]

    @property
    def is_reference(self) -> bool:
        return "_reference_" in self.name

    @property
    def deterministic(self) -> bool:
        """Same bits in every run and for every number of threads: every native kernel promises it (and is tested), and
        so does every CUDA and Triton kernel, which adds in a fixed order and never atomically.
        """
        return not self.is_torch

    @property
    def is_torch(self) -> bool:
        return self.name.endswith("_aten")

    @property
    def algorithm(self) -> str:
        """The middle of the name: "igemm", "winograd4", "aten", ..."""
        return algorithm_of(self.name)

    @property
    def spreads_nan(self) -> bool:
        """Whether one NaN or infinity in an operand makes other outputs NaN than it does in torch.

        A Winograd tile computes its outputs from sums over all its pixels and all taps; 0 · inf and inf - inf are NaN.
        """
        return self.algorithm.startswith("winograd")


def algorithm_of(name: str) -> str:
    """The algorithm a kernel's name ``family/pass_algorithm_target`` speaks of."""
    return name.split("/")[-1].split("_")[1] if "_" in name else name


@cache
def kernels() -> tuple[Kernel, ...]:
    """Every kernel of this build: hand-written ones, then PyTorch's own, the GPU's, and the references."""
    from fastconv.kernels import aten, cuda, native, triton

    own = native.rows()
    return (
        *(kernel for kernel in own if not kernel.is_reference),
        *aten.rows(),
        *cuda.rows(),  # behind PyTorch's, as Triton's, until a table of measurements says otherwise
        *triton.rows(),
        *(kernel for kernel in own if kernel.is_reference),
    )


def kernel(name: str) -> Kernel:
    """The kernel of that name; ValueError when there is none."""
    for row in kernels():
        if row.name == name:
            return row
    raise ValueError(f"There is no kernel named {name!r}.")


def names() -> list[str]:
    """Of all kernels, also of those that compute two problems and are no rows (``kernels/pairs.py``)."""
    from fastconv.kernels import pairs

    return [kernel.name for kernel in kernels()] + [pair.name for pair in pairs.pairs()]
