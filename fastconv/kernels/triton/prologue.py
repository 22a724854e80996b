"""A training batch norm and its activation on the way into a convolution: applied to a tile of the source as it is
loaded and rounded as a tensor in memory would be, so that the product has the bits of one of the stored norm.

It saves writing and reading that tensor, and costs the norm's arithmetic anew for every block of columns and, in an
implicit product, for every tap. It has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton.common import activate, narrow, normalize, widen

DEPTH = 32  # of a tile, at most, as the norm takes registers: of 64 ptxas 12.8 spilled masks, for sm_80 (2026-11)


@dataclass(frozen=True)
class Norm:
    """A batch norm and its activation. stats: (2, C), mean and biased variance; all tensors in float. alpha: the slope
    of leaky_relu below zero.
    """

    stats: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    activation: str
    alpha: float = 0.0


@triton.jit
def normalized(
    a,
    weight,
    bias,
    mean,
    variance,
    channel,
    channel_inside,
    eps,
    alpha,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """A tile [pixels, channels] in its own type. What lay outside the source is no zero any more."""
    value = normalize(widen(a), weight, bias, mean, variance, channel, channel_inside, eps, WEIGHT, BIAS, True)
    return narrow(activate(value, alpha, ACTIVATION), a.dtype)


def arguments(norm: Norm | None, source: Tensor) -> dict[str, Any]:
    """As the kernels name them; absent operands are pointers that nobody reads."""
    weight, bias = (None, None) if norm is None else (norm.weight, norm.bias)
    return {
        "mean": source if norm is None else norm.stats[0],
        "variance": source if norm is None else norm.stats[1],
        "norm_weight": source if weight is None else weight,
        "norm_bias": source if bias is None else bias,
        "eps": 0.0 if norm is None else float(norm.eps),
        "norm_alpha": 0.0 if norm is None else float(norm.alpha),
        "NORM": norm is not None,
        "NORM_WEIGHT": weight is not None,
        "NORM_BIAS": bias is not None,
        "NORM_ACTIVATION": "none" if norm is None else norm.activation,
    }
