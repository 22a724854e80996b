"""PyTorch's own normalisations as ordinary rows."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.kernels.aten_map import part
from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cpu", "cuda")
EPS = 1e-5  # where a caller gives none
RESPONSE = (1e-4, 0.75, 1.0)  # alpha, beta and k of a local response norm, likewise
aten = torch.ops.aten


def rows() -> list[Kernel]:
    """One row per pass."""
    return [
        Kernel("batchnorm2d/fprop_aten", "batchnorm2d", "fprop", DEVICES, _refuses, fprop),
        Kernel("batchnorm2d/dgrad_aten", "batchnorm2d", "dgrad", DEVICES, _refuses, dgrad),
        Kernel("batchnorm2d/wgrad_aten", "batchnorm2d", "wgrad", DEVICES, _refuses, wgrad),
        Kernel("lrn2d/fprop_aten", "lrn2d", "fprop", DEVICES, _refuses_response, response_fprop),
        Kernel("lrn2d/dgrad_aten", "lrn2d", "dgrad", DEVICES, _refuses_response, response_dgrad),
    ]


def _refuses(problem: Problem) -> str | None:
    if problem.residual or problem.activation != "none" or problem.out_channels:
        return "PyTorch's operator has no residual, no activation and no channel slice."
    return None


def _refuses_response(problem: Problem) -> str | None:
    if problem.in_channels:
        return "It reads dense inputs, not a slice of a buffer's channels."
    if problem.dtype in ("f16", "bf16"):
        return f"PyTorch averages over channels in float and double, but the problem is in {problem.dtype}."
    return _refuses(problem)


def fprop(
    problem: Problem,
    *,
    x: Tensor,
    w: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
    stats: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """``aten::native_batch_norm``; in training it writes mean and biased variance into ``stats``."""
    x = part(problem, x)
    if not problem.training:
        mean = torch.zeros_like(variance) if mean is None else mean
        return aten.native_batch_norm(x, w, bias, mean, variance, False, 0.0, eps)[0]
    # With a momentum of 1 the running statistics are the batch's, if nothing times zero is nothing.
    stats.zero_()
    y = aten.native_batch_norm(x, w, bias, stats[0], stats[1], True, 1.0, eps)[0]
    count = problem.n * problem.h.size * problem.w.size
    stats[1].mul_((count - 1) / count)
    if count == 1:
        stats[1].zero_()
    return y


def _backward(problem, y, x, w, mean, variance, eps, mask):
    inverse = (variance + eps).rsqrt()
    return aten.native_batch_norm_backward(y, x, w, mean, variance, mean, inverse, problem.training, eps, mask)


def dgrad(
    problem: Problem,
    *,
    y: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    w: Tensor | None = None,
    stats: Tensor,
    eps: float = EPS,
) -> Tensor:
    """``aten::native_batch_norm_backward``; writes the gradients of weight and bias into ``stats``."""
    dx, dw, db = _backward(problem, y, x, w, mean, variance, eps, [True, True, True])
    stats[0], stats[1] = dw, db
    return dx


def wgrad(problem: Problem, *, y: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float = EPS) -> Tensor:
    """``aten::native_batch_norm_backward`` asked for the gradients of weight and bias alone, shape (2, C)."""
    _, dw, db = _backward(problem, y, x, None, mean, variance, eps, [False, True, True])
    return torch.stack([dw, db]).to(mean.dtype)


def response_fprop(problem: Problem, *, x: Tensor, response: tuple[float, float, float] = RESPONSE) -> Tensor:
    """``torch.nn.functional.local_response_norm``, a composite of PyTorch's operators."""
    return torch.nn.functional.local_response_norm(x, problem.size, *response)


def _mean(problem: Problem, t: Tensor, before: int) -> Tensor:
    """The mean of ``size`` channels, ``before`` of them in front of each; what is outside counts as zero."""
    padded = torch.nn.functional.pad(t[:, None], (0, 0, 0, 0, before, problem.size - 1 - before))
    return torch.nn.functional.avg_pool3d(padded, (problem.size, 1, 1), stride=1)[:, 0]


def response_dgrad(
    problem: Problem, *, y: Tensor, x: Tensor, response: tuple[float, float, float] = RESPONSE
) -> Tensor:
    """The gradient in PyTorch's operators, which have none for it."""
    alpha, beta, k = response
    s = _mean(problem, x * x, problem.size // 2) * alpha + k
    far = _mean(problem, y * x * s.pow(-beta - 1), (problem.size - 1) // 2)
    return y * s.pow(-beta) - 2 * alpha * beta * x * far
