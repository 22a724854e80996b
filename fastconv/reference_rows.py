"""The oracle of what works on rows of channels (layer norm, softmax, copies, attention), in float64 from the rounded
inputs, from the definitions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.reference_map import part

OPS = ("layernorm2d", "softmax2d", "copy2d", "attention")


def layer_norm(problem: Problem, x: Tensor, w: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x, a buffer, each pixel's channels normalised; w and bias of shape (C,)."""
    x = part(problem, x).double()
    off = x - x.sum(1, keepdim=True) / problem.c
    y = off / ((off * off).sum(1, keepdim=True) / problem.c + eps).sqrt()
    for term, apply in ((w, torch.mul), (bias, torch.add)):
        if term is not None:
            y = apply(y, term.double()[:, None, None])
    return y


def softmax(problem: Problem, x: Tensor) -> Tensor:
    """x, a buffer: exp(x) over its sum, over each pixel's channels."""
    x = part(problem, x).double()
    powers = (x - x.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def scores(x: Tensor, keys: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """factor · queries · keys + mask, of shape (N, heads, queries, keys)."""
    products = torch.einsum("nhtd,nhsd->nhts", x.double(), keys.double()) * factor
    return products if mask is None else products + mask.double()


def weights(scores: Tensor) -> Tensor:
    """Their softmax over the keys; zeros for a query whose scores are all minus infinity, as torch has it."""
    most = scores.amax(-1, keepdim=True)
    powers = (scores - most).exp()
    return torch.where(most == -torch.inf, 0.0, powers / powers.sum(-1, keepdim=True))


def attention(x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """Operands (N, heads, tokens, channels), x the queries; the result as (N, heads · channels, queries, 1)."""
    weight = weights(scores(x, keys, mask, factor))
    y = torch.einsum("nhts,nhsc->nhtc", weight, values.double())
    return y.permute(0, 1, 3, 2).flatten(1, 2)[..., None]
