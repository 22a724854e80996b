"""The search for better tiles of the Triton kernels: asked for, never on the way to a result.

Every tile the model offers for a problem is first held against the float64 reference, on operands and results that
lie between guards; only what is right is timed. The check runs fewer images of the same convolution: sizes do not
specialise a kernel, so it is the compiled kernel that is timed afterwards. A tile replaces the model's choice where it
is faster by LEAST_MARGIN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from fastconv import registry
from fastconv.kernels import triton
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import blank
from fastconv.testing.check import check_conv
from fastconv.testing.check_norm import check_norm
from fastconv.testing.check_pool import check_pool

LEAST_MARGIN = 1.03  # how many times faster than the default a tile must be to replace it
CHECKED_FLOPS = 5e8  # of a check: the reference is slow
SECONDS_OF_MS = 1e-3

Bench = Callable[[Callable[[], None]], float]


@dataclass(frozen=True)
class Trial:
    """One tile on one problem. seconds: of one run, or None where ``reason`` says why it was dropped."""

    tile: tuple[int, ...]
    seconds: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What was found for a bucket. margin: how many times faster the winner is than the model's tile, 1.0 for itself;
    None where no tile was right, or the model's was not.
    """

    kernel: str
    problem: str
    bucket: str
    default: tuple[int, ...]
    winner: tuple[int, ...] | None
    margin: float | None
    trials: tuple[Trial, ...]

    def entry(self) -> dict[str, object]:
        """What the file of tiles keeps."""
        seconds = next(trial.seconds for trial in self.trials if trial.tile == self.winner)
        return {"tile": list(self.winner), "margin": self.margin, "seconds": seconds, "problem": self.problem}


def kernels_for(problem: Problem, pattern: str = "*") -> list[Kernel]:
    """The Triton kernels that take the problem."""
    from fnmatch import fnmatchcase

    return [
        kernel
        for kernel in registry.kernels()
        if kernel.target == "triton"
        and kernel.computes(problem)
        and fnmatchcase(kernel.name, pattern)
        and kernel.refuses(problem) is None
    ]


def gpu_seconds(run: Callable[[], None]) -> float:
    """Median seconds of a run on the current GPU, by events, with the second-level cache flushed before each."""
    from triton.testing import do_bench

    return do_bench(run, return_mode="median") * SECONDS_OF_MS


def tune(kernel: Kernel, problem: Problem, *, bench: Bench = gpu_seconds, device: str = "cuda") -> Outcome | None:
    """Tries every tile the model offers for the problem; None where it offers one at most.

    bench: seconds of one call of the function it is given. device: "cpu" where the kernels are interpreted.
    """
    from fastconv.kernels.triton import tuned

    file = triton.load(triton.file_of(kernel))
    operands = blank.operands(problem, device)
    tiles = _offered(file, problem, operands)
    if len(tiles) < 2:
        return None
    trials = tuple(_try(kernel, file, problem, tile, operands, bench, device) for tile in tiles)
    default, *_ = trials
    right = [trial for trial in trials if trial.seconds is not None]
    best = min(right, key=lambda trial: trial.seconds, default=None)
    margin = None
    if best is not None and default.seconds is not None:
        best = best if default.seconds / best.seconds >= LEAST_MARGIN else default
        margin = default.seconds / best.seconds
    name = tuned.bucket(kernel.name, problem)
    winner = best.tile if best else None
    return Outcome(kernel.name, str(problem), name, default.tile, winner, margin, trials)


def _offered(file, problem: Problem, operands: dict[str, Tensor]) -> Sequence:
    from fastconv.kernels.triton import configure

    with configure.offers() as noted:
        file.plan(problem, **operands)
    return noted[0] if noted else ()


def _try(kernel: Kernel, file, problem: Problem, tile, operands, bench: Bench, device: str) -> Trial:
    from fastconv.kernels.triton import configure

    try:
        with configure.using(tile):
            check(kernel, _smaller(problem), device)
            _, launches = file.plan(problem, **operands)
            seconds = bench(lambda: [launch() for launch in launches])
    except Exception as error:  # a tile may fail in any way: wrong, out of registers, not to be compiled
        return Trial(astuple(tile), None, f"{type(error).__name__}: {error}".splitlines()[0])
    return Trial(astuple(tile), seconds)


def check(kernel: Kernel, problem: Problem, device: str) -> None:
    """The kernel on the device against the reference, between guards; AssertionError in one sentence."""
    held = replace(kernel, run=_on(device, kernel.run)) if device != "cpu" else kernel
    if problem.is_conv:
        check_conv(held, problem, weight_channels_last=True)
    elif problem.is_norm:
        check_norm(held, problem, kind="integers")
    else:
        check_pool(held, problem, kind="ties")


def _smaller(problem: Problem) -> Problem:
    """As many images of it as the reference computes soon."""
    images = int(CHECKED_FLOPS * problem.n // max(1, problem.flops))
    return problem.replace(n=max(1, min(problem.n, 2, images)))


def _on(device: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Runs on copies of whole buffers, guards included, and brings everything back that may have been written."""

    def moved(problem: Problem, *, threads: int = 0, **operands) -> Tensor:
        tensors = {name: t for name, t in operands.items() if isinstance(t, Tensor)}
        buffers = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors.values()}
        copies = {place: storage.to(device=torch.device(device)) for place, storage in buffers.items()}

        def there(t: Tensor) -> Tensor:
            empty = torch.empty(0, dtype=t.dtype, device=device)
            copy = copies[t.untyped_storage().data_ptr()]
            return empty.set_(copy, t.storage_offset(), t.shape, t.stride())

        run(problem, threads=threads, **operands | {name: there(t) for name, t in tensors.items()})
        for place, storage in buffers.items():
            storage.copy_(copies[place])
        return operands["out"]

    return moved
