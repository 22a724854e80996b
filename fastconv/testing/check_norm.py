"""One check of one normalisation kernel on one problem: guarded buffers and the float64 oracle, by equality where
integers make every step exact, else within a bound.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastconv import reference_norm
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import check_lrn, guard, tolerances
from fastconv.testing.inputs import DTYPES, guarded_output, in_buffer, memory_format
from fastconv.testing.norm_case import EPS, SHIFT, STEPS, Case, activation, arithmetic, values

_REST = (0, 2, 3)


@lru_cache(maxsize=1)  # every kernel of one algorithm is held against one result
def case(problem: Problem, kind: str, seed: int, affine: bool = True) -> Case:
    """The same for the same arguments."""
    if problem.op == "lrn2d":
        return check_lrn.case(problem, kind, seed)
    generator = torch.Generator().manual_seed(seed)
    exact, wide, channels = kind == "integers", arithmetic(problem), (problem.c,)

    def root() -> Tensor:
        if exact:
            return 2.0 ** torch.randint(-1, 2, channels, generator=generator).double()
        return 0.5 + torch.rand(channels, generator=generator, dtype=torch.float64)

    eps = 0.0 if exact and not (problem.training and problem.pass_ == "fprop") else EPS
    tensors = {"x": activation(problem, kind, generator)}
    if affine and problem.pass_ != "wgrad":
        tensors["w"] = values(channels, kind, generator).to(wide)
        if problem.pass_ == "fprop":
            tensors["bias"] = values(channels, kind, generator).to(wide)
    if problem.pass_ != "fprop":
        tensors["y"] = activation(problem, kind, generator) - (SHIFT if kind == "shifted" else 0)
        if problem.training and not exact:
            mean, variance = reference_norm.statistics(tensors["x"])
        else:
            mean, variance = values((1, *channels), kind, generator)[0], root().square()
        tensors |= {"mean": mean.to(wide), "variance": variance.to(wide)}
        return _gradient_case(problem, tensors, eps, exact)
    if problem.residual:
        tensors["residual"] = activation(problem, kind, generator)
    if not problem.training:
        tensors |= {"mean": values((1, *channels), kind, generator)[0].to(wide), "variance": root().square().to(wide)}
    return _forward_case(problem, tensors, eps, exact)


def _bound(problem: Problem, terms: int) -> float:
    """Of a result that is stored as the tensor is."""
    return tolerances.relative_bound(problem.dtype, terms + STEPS)


def _channel_bound(problem: Problem, terms: int) -> float:
    """Of a result in the arithmetic type."""
    return tolerances.relative_bound("f64" if problem.dtype == "f64" else "f32", terms + STEPS)


def _count(problem: Problem) -> int:
    return problem.n * problem.h.size * problem.w.size


def _forward_case(problem: Problem, tensors: dict[str, Tensor], eps: float, exact: bool) -> Case:
    x = tensors["x"]
    mean, variance = tensors.get("mean"), tensors.get("variance")
    expected = reference_norm.normalize(
        problem, x, tensors.get("w"), tensors.get("bias"), mean, variance, tensors.get("residual"), eps
    )
    stats = stats_allowed = None
    terms = 0
    if problem.training:
        terms = _count(problem)
        mean, variance = reference_norm.statistics(x)
        stats, bound = torch.stack([mean, variance]), _channel_bound(problem, terms)
        # A deviation carries the rounding of the mean it is taken from.
        stats_allowed = bound * torch.stack(
            [x.double().abs().mean(_REST), variance + bound * x.double().abs().amax(_REST).square()]
        )
    scale = (tensors["w"].double().abs() if "w" in tensors else 1) / (variance.double() + eps).sqrt()
    center = x.double().abs().mean(_REST) if problem.training else mean.double().abs()  # what the mean sums
    size = (x.double().abs() + center[:, None, None]) * scale[:, None, None]
    if "bias" in tensors:
        size = size + tensors["bias"].double().abs()[:, None, None]
    if "residual" in tensors:
        size = size + tensors["residual"].double().abs()
    allowed = tolerances.allowed(problem.dtype, terms + STEPS, "direct", size, expected)
    if exact and not problem.training and problem.activation in ("none", "relu", "relu6"):
        allowed = torch.zeros_like(size)
    return Case(tensors, {"eps": eps}, expected, allowed, stats, stats_allowed, size)


def _gradient_case(problem: Problem, tensors: dict[str, Tensor], eps: float, exact: bool) -> Case:
    names = ("y", "x", "w", "mean", "variance")
    dy, x, w, mean, variance = (tensors.get(name) for name in names)
    dx, pair = reference_norm.gradients(problem, dy, x, w, mean, variance, eps)
    inverse = 1 / (variance.double() + eps).sqrt()
    off = (x.double() - mean.double()[:, None, None]).abs() * inverse[:, None, None]
    sizes = torch.stack([(dy.double().abs() * off).sum(_REST), dy.double().abs().sum(_REST)])
    pair_allowed = torch.zeros_like(pair) if exact else _channel_bound(problem, _count(problem)) * sizes
    if problem.pass_ == "wgrad":
        return Case(tensors, {"eps": eps}, pair, pair_allowed, None, None, sizes)
    size, terms = dy.double().abs(), 0
    if problem.training:
        terms = _count(problem)
        size = size + (sizes[1][:, None, None] + off * sizes[0][:, None, None]) / terms
    size = size * (inverse if w is None else inverse * w.double().abs())[:, None, None]
    allowed = _bound(problem, terms) * size + torch.finfo(DTYPES[problem.dtype]).tiny
    if exact and not problem.training:
        allowed = torch.zeros_like(size)
    return Case(tensors, {"eps": eps}, dx, allowed, pair, pair_allowed, size)


def check_norm(
    kernel: Kernel,
    problem: Problem,
    *,
    kind: str,
    seed: int = 0,
    offset: int = 0,
    threads: int = 0,
    affine: bool = True,
) -> None:
    """Runs a native kernel between guards; AssertionError with one sentence when anything is wrong.

    kind: which data, one of ``norm_case.KINDS``. affine: with weight and bias.
    offset: elements by which every buffer is off alignment.
    """
    run = case(problem, kind, seed, affine)
    if problem.pass_ == "wgrad":
        out = guard.GuardedOutput(tuple(run.expected.shape), arithmetic(problem), offset=offset)
    elif problem.pass_ == "fprop":
        out = guarded_output(problem, offset)
    else:
        shape = tuple(run.expected.shape)
        out = guard.GuardedOutput(shape, DTYPES[problem.dtype], memory_format(problem), offset)
    tensors = run.tensors | {"x": in_buffer(problem, run.tensors["x"])}
    tensors = {name: guard.guarded(t, offset) for name, t in tensors.items()}
    stats = None
    if run.stats is not None:
        stats = guard.GuardedOutput(tuple(run.stats.shape), arithmetic(problem), offset=offset)
        tensors["stats"] = stats.tensor
    kernel.run(problem, out=out.buffer, threads=threads, **run.numbers, **tensors)
    for name, buffer, expected, allowed in (
        ("the result", out, run.expected, run.allowed),
        ("the channels' pair", stats, run.stats, run.stats_allowed),
    ):
        if buffer is None:
            continue
        violation = buffer.violation()
        assert violation is None, f"Beside {name}: {violation}"
        _assert_within(name, buffer.tensor, expected, allowed)


def _assert_within(name: str, got: Tensor, expected: Tensor, allowed: Tensor) -> None:
    wrong = ~((got.double() - expected).abs() <= allowed)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements of {name} are wrong; at {first} the kernel gave "
            f"{got[first].item()}, exact is {expected[first].item()}, allowed {allowed[first].item():.3g}."
        )
