"""Brings torch's flexible arguments into one form: tuples of ints, padding per side, a batch axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Ints = int | Sequence[int]


def as_tuple(value: Ints, dims: int, name: str) -> tuple[int, ...]:
    """``value`` as ``dims`` integers; a single one stands for all."""
    if isinstance(value, int | torch.SymInt):
        return (value,) * dims
    values = tuple(value)
    if len(values) == 1:
        values *= dims
    if len(values) != dims:
        raise RuntimeError(f"{name} must be an int or {dims} ints, but is {value!r}.")
    return values


def sides(padding: Ints | str, window: Sequence[int], stride: tuple, dilation: tuple) -> tuple[int, ...]:
    """Padding as (low, high) per axis. 'same' puts the odd element behind, as torch does."""
    dims = len(stride)
    if not isinstance(padding, str):
        return tuple(side for amount in as_tuple(padding, dims, "padding") for side in (amount, amount))
    if padding == "valid":
        return (0,) * (2 * dims)
    if padding != "same":
        raise RuntimeError(f"padding must be 'same', 'valid' or numbers, but is {padding!r}.")
    if any(step != 1 for step in stride):
        raise RuntimeError(f"padding='same' needs stride 1, but stride is {stride}.")
    total = [dilation[i] * (window[i] - 1) for i in range(dims)]
    return tuple(side for amount in total for side in (amount // 2, amount - amount // 2))


def batched(input: Tensor, dims: int, name: str) -> tuple[Tensor, bool]:
    """The input with a batch axis, and whether it had one."""
    if input.dim() == dims + 2:
        return input, True
    if input.dim() == dims + 1:
        return input.unsqueeze(0), False
    raise RuntimeError(
        f"{name} takes an input of {dims + 1} (unbatched) or {dims + 2} (batched) dimensions, "
        f"but got shape {tuple(input.shape)}."
    )
