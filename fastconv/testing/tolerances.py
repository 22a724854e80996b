"""How far a correct kernel may be from the float64 result.

Errors are measured against the sum of the absolute products, in units of the rounding error u, so that cancellation is
no excuse and no alarm (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).

Winograd kernels compute a tile of outputs at once, from all its pixels and all taps. They have bounds of their own, and
their errors are measured against the largest sum of absolute products in the tile (``winograd_size``): an output that a
corner of the map feeds with one product carries the rounding errors of its neighbours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv.problem import Problem

UNIT = {"f64": 2.0**-53, "f32": 2.0**-24, "tf32": 2.0**-11, "f16": 2.0**-11, "bf16": 2.0**-8}
# Outputs of a tile along one axis.
TILE = {"winograd2": 2, "winograd4": 4, "winograd2r5": 2}
# F(2x2,3x3) divides filters by four and is exact on integers that allow it; those of six points have irrational ones.
WEIGHT_MULTIPLE = {"winograd2": 4}
INEXACT = ("winograd4", "winograd2r5")
# Algorithms that take bfloat16 alone; their instruction takes subnormal numbers for zero.
OF_BFLOAT16 = frozenset({"pairs"})
# Of ||y - y64|| / ||y64|| in float.
INEXACT_L2 = 2e-5
LARGEST_SLOPE = 1.2  # of an activation


def relative_bound(dtype: str, terms: int, algorithm: str = "direct") -> float:
    """Bound on |y - y64| / (sum |x||w| + |b|) before the activation.

    16-bit types are summed in float and rounded once; tf32 rounds its operands on the way in.
    """
    working = UNIT["f64"] if dtype == "f64" else UNIT["f32"]
    if algorithm in INEXACT:
        return 64 * working + terms**0.5 * working + storage(dtype)
    summed = min(terms * working / (1 - terms * working), 4 * terms**0.5 * working + 2 * working)
    direct = summed + 2 * working
    if algorithm == "winograd2":
        return 4 * direct + storage(dtype)
    return direct + storage(dtype) + (2 * UNIT["tf32"] if dtype == "tf32" else 0)


def allowed(dtype: str, terms: int, algorithm: str, size: Tensor, expected: Tensor, *, roundings: int = 1) -> Tensor:
    """The error each element may have, after the epilogue.

    size: the sum of absolute products with bias and residual. roundings: how often 16-bit types are rounded.
    """
    bound = relative_bound(dtype, terms, algorithm) + (roundings - 1) * storage(dtype)
    # The activation's own evaluation and the final rounding add a few units.
    slack = 4 * UNIT["f32" if dtype != "f64" else "f64"] + storage(dtype)
    smallest = torch.finfo(expected.dtype if dtype == "f64" else _STORED.get(dtype, torch.float32)).tiny
    return LARGEST_SLOPE * bound * size + slack * expected.abs() + smallest


def allowed_l2(dtype: str, terms: int, algorithm: str, size: Tensor, expected: Tensor) -> float:
    """Bound on ||y - y64||; infinite for algorithms that are held by their elements alone.

    Where the result cancels as a whole, sums of ``terms`` products of random sign stand for it.
    """
    if algorithm not in INEXACT:
        return float("inf")
    norm = max(expected.norm().item(), size.norm().item() / terms**0.5)
    unit = UNIT["f64"] / UNIT["f32"] if dtype == "f64" else 1.0
    return LARGEST_SLOPE * (INEXACT_L2 * unit + 2 * storage(dtype)) * norm + torch.finfo(torch.float32).tiny


def winograd_size(problem: Problem, first: Tensor, second: Tensor, algorithm: str) -> Tensor:
    """Of each output of a convolution of stride 1, the largest sum |x||w| in any tile that can hold it.

    first, second: as in ``inputs.operand_names``. Tiles may reach over the edges of the map: the sums there count too.
    Of wgrad, the largest sum |x||dy| at any distance that two pixels of a tile can have: every tap sees them all.
    """
    tile, reach = TILE[algorithm], problem.h.window - 1
    source, filter, axes = first.double().abs(), second.double().abs(), (problem.w, problem.h)
    steps = [axis.dilation for axis in axes]  # from pixel to pixel of a tile
    lows = [axis.pad_lo for axis in axes]
    sizes = [(axis.size, axis.out) for axis in axes]
    if problem.pass_ == "dgrad":
        filter = filter.flip(2, 3).transpose(0, 1)
        lows = [reach * step - low for low, step in zip(lows, steps, strict=True)]
        sizes = [(out, size) for size, out in sizes]
    if problem.pass_ == "wgrad":
        source, filter = source.transpose(0, 1), filter.transpose(0, 1)
    pads = []
    for low, step, (size, written) in zip(lows, steps, sizes, strict=True):
        past = (tile - 1) * step
        pads += [low + past, written - size + reach * step - low + past]
    down, across = reversed(steps)
    if problem.pass_ == "wgrad":
        sums = F.conv2d(F.pad(source, pads), filter, stride=(down, across))
        return sums.amax((2, 3), keepdim=True).expand(-1, -1, reach + 1, reach + 1).transpose(0, 1)
    sums = F.conv2d(F.pad(source, pads), filter, dilation=(down, across))
    return F.max_pool2d(sums, 2 * tile - 1, stride=1, dilation=(down, across))


def storage(dtype: str) -> float:
    """The rounding error of storing a result of the arithmetic type."""
    return UNIT[dtype] if dtype in ("f16", "bf16") else 0.0


_STORED = {"f16": torch.float16, "bf16": torch.bfloat16}
