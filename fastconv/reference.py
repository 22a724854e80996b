"""The oracle: every operation in float64 from the already rounded inputs, by code that shares nothing with the kernels.

Tests, the tuner and the benchmarks compare against it. It is slow and takes any problem.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.problem import Problem


def conv2d(problem: Problem, x: Tensor | None = None, w: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """One pass of a convolution without its epilogue, in float64 and contiguous NCHW (KCRS for wgrad).

    fprop takes x and w, dgrad y (the output gradient) and w, wgrad x and y.
    """
    passes = {"fprop": _fprop, "dgrad": _dgrad, "wgrad": _wgrad}
    operands = [t.double() for t in {"fprop": (x, w), "dgrad": (y, w), "wgrad": (x, y)}[problem.pass_]]
    return passes[problem.pass_](problem, *operands)


def epilogue(problem: Problem, y: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """bias, residual and activation on a float64 result."""
    if bias is not None:
        y = y + bias.double()[:, None, None]
    if residual is not None:
        y = y + residual.double()
    return activation(problem, y)


def activation(problem: Problem, y: Tensor) -> Tensor:
    """The problem's activation, from its definition."""
    match problem.activation:
        case "none":
            return y
        case "relu":
            return y.clamp(min=0)
        case "relu6":
            return y.clamp(0, 6)
        case "leaky_relu":
            return torch.where(y > 0, y, problem.alpha * y)
        case "silu":
            return y / (1 + torch.exp(-y))
        case "hardswish":
            return y * (y + 3).clamp(0, 6) / 6
        case "hardsigmoid":
            return (y + 3).clamp(0, 6) / 6
        case "sigmoid":
            return 1 / (1 + torch.exp(-y))
        case "gelu":
            return y * 0.5 * (1 + torch.erf(y / 2**0.5))
        case "gelutanh":
            # (1 + tanh(u)) / 2 without its cancellation.
            return y / (1 + torch.exp(-2 * (2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
    raise ValueError(f"There is no activation named {problem.activation!r}.")


def _padded(problem: Problem, x: Tensor) -> Tensor:
    """x with its padding, long enough for every window (a negative padding crops nothing: no window reads there)."""
    n, c = x.shape[:2]
    spans = [(a.out - 1) * a.stride + a.dilation * (a.window - 1) + 1 for a in (problem.h, problem.w)]
    padded = x.new_zeros(n, c, *(max(s, a.size + a.pad_lo) for s, a in zip(spans, (problem.h, problem.w), strict=True)))
    padded[:, :, problem.h.pad_lo :, problem.w.pad_lo :][:, :, : problem.h.size, : problem.w.size] = x
    return padded


def _tap(problem: Problem, padded: Tensor, r: int, s: int) -> Tensor:
    """What every output position reads through tap (r, s): a view of shape (N, C, P, Q)."""
    h, w = problem.h, problem.w
    rows = slice(r * h.dilation, r * h.dilation + (h.out - 1) * h.stride + 1, h.stride)
    columns = slice(s * w.dilation, s * w.dilation + (w.out - 1) * w.stride + 1, w.stride)
    return padded[:, :, rows, columns]


def _grouped(problem: Problem, t: Tensor) -> Tensor:
    return t.unflatten(1, (problem.groups, -1))


def _taps(problem: Problem):
    return ((r, s) for r in range(problem.h.window) for s in range(problem.w.window))


def _fprop(problem: Problem, x: Tensor, w: Tensor) -> Tensor:
    padded = _padded(problem, x)
    w = w.unflatten(0, (problem.groups, -1))
    y = 0
    for r, s in _taps(problem):
        y = y + torch.einsum("ngcpq,gkc->ngkpq", _grouped(problem, _tap(problem, padded, r, s)), w[..., r, s])
    return y.flatten(1, 2)


def _dgrad(problem: Problem, dy: Tensor, w: Tensor) -> Tensor:
    h, v = problem.h, problem.w
    padded = _padded(problem, dy.new_zeros(problem.n, problem.c, h.size, v.size))
    w = w.unflatten(0, (problem.groups, -1))
    for r, s in _taps(problem):
        part = torch.einsum("ngkpq,gkc->ngcpq", _grouped(problem, dy), w[..., r, s])
        _tap(problem, padded, r, s).add_(part.flatten(1, 2))
    return padded[:, :, h.pad_lo :, v.pad_lo :][:, :, : h.size, : v.size]


def _wgrad(problem: Problem, x: Tensor, dy: Tensor) -> Tensor:
    padded = _padded(problem, x)
    taps = [
        torch.einsum("ngkpq,ngcpq->gkc", _grouped(problem, dy), _grouped(problem, _tap(problem, padded, r, s)))
        for r, s in _taps(problem)
    ]
    return torch.stack(taps, -1).flatten(0, 1).unflatten(-1, (problem.h.window, problem.w.window))
