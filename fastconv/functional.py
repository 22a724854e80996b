"""torch.nn.functional's convolutions with torch's names, argument order and defaults.

These functions only bring arguments into one form: scalars to pairs, 'same' to numbers, one dimension to two,
unbatched to batched. Which kernel runs is decided in :mod:`fastconv.dispatch`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv import ops as ops  # registers the operators

_Ints = int | Sequence[int]
_conv2d = torch.ops.fastconv.conv2d.default
_conv2d_act = torch.ops.fastconv.conv2d_act.default
_conv2d_dgrad = torch.ops.fastconv.conv2d_dgrad.default


def _tuple(value: _Ints, dims: int, name: str) -> tuple[int, ...]:
    """``value`` as ``dims`` integers; a single one stands for all."""
    if isinstance(value, int | torch.SymInt):
        return (value,) * dims
    values = tuple(value)
    if len(values) == 1:
        values *= dims
    if len(values) != dims:
        raise RuntimeError(f"{name} must be an int or {dims} ints, but is {value!r}.")
    return values


def _sides(padding: _Ints | str, window: Sequence[int], stride: tuple, dilation: tuple) -> tuple[int, ...]:
    """Padding as (low, high) per axis. 'same' puts the odd element behind, as torch does."""
    dims = len(stride)
    if not isinstance(padding, str):
        return tuple(side for amount in _tuple(padding, dims, "padding") for side in (amount, amount))
    if padding == "valid":
        return (0,) * (2 * dims)
    if padding != "same":
        raise RuntimeError(f"padding must be 'same', 'valid' or numbers, but is {padding!r}.")
    if any(step != 1 for step in stride):
        raise RuntimeError(f"padding='same' needs stride 1, but stride is {stride}.")
    total = [dilation[i] * (window[i] - 1) for i in range(dims)]
    return tuple(side for amount in total for side in (amount // 2, amount - amount // 2))


def _batched(input: Tensor, dims: int, name: str) -> tuple[Tensor, bool]:
    """The input with a batch axis, and whether it had one."""
    if input.dim() == dims + 2:
        return input, True
    if input.dim() == dims + 1:
        return input.unsqueeze(0), False
    raise RuntimeError(
        f"{name} takes an input of {dims + 1} (unbatched) or {dims + 2} (batched) dimensions, "
        f"but got shape {tuple(input.shape)}."
    )


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution, ``torch.nn.functional.conv2d``'s signature and result.

    input: (N, C, H, W) or (C, H, W); weight: (K, C/groups, R, S); bias: (K). Returns (N, K, P, Q) or (K, P, Q).
    Raises what torch raises (RuntimeError for shapes, dtypes and geometry), before anything is allocated.
    """
    x, is_batched = _batched(input, 2, "conv2d")
    stride, dilation = _tuple(stride, 2, "stride"), _tuple(dilation, 2, "dilation")
    y = _conv2d(x, weight, bias, stride, _sides(padding, weight.shape[2:], stride, dilation), dilation, groups)
    return y if is_batched else y.squeeze(0)
