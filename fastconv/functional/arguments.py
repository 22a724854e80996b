"""Brings torch's flexible arguments into one form: tuples of ints, padding per side, a batch axis.

Mistakes raise the class torch raises: TypeError for a wrong type, ValueError for an int beyond 64 bits, RuntimeError
for a wrong value or shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Ints = int | Sequence[int]
INT64_MAX = 2**63 - 1


def as_int(value: int, name: str) -> int:
    """``value`` when it is an int of at most 64 bits (a bool is none)."""
    if isinstance(value, torch.SymInt):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, but is {value!r}.")
    if not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise ValueError(f"{name} is {value}, which does not fit 64 bits.")
    return value


def as_tuple(value: Ints, dims: int, name: str) -> tuple[int, ...]:
    """``value`` as ``dims`` integers; a single one stands for all."""
    if isinstance(value, int | torch.SymInt):
        return (as_int(value, name),) * dims
    if isinstance(value, str | Tensor) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be an int or {dims} ints, but is {value!r}.")
    values = tuple(as_int(v, name) for v in value)
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


def transposed_axis(
    size: int, window: int, stride: int, padding: int, extra: int, dilation: int
) -> tuple[int, tuple[int, int]]:
    """Output size of a transposed convolution on one axis, and the padding of the convolution whose gradient it is.

    ``extra`` is the output padding. The convolution ignores fewer than ``stride`` elements at the end; where ``extra``
    is more, its padding at the high side shrinks, below zero where it must.
    """
    if padding < 0:
        raise RuntimeError(f"padding must not be negative, but is {padding}.")
    if extra < 0:
        raise RuntimeError(f"output_padding must not be negative, but is {extra}.")
    if stride <= 0:
        raise RuntimeError(f"stride must be positive, but is {stride}.")
    if extra >= stride and extra >= dilation:
        raise RuntimeError(
            f"output_padding must be smaller than stride or dilation, but is {extra} with stride {stride} and "
            f"dilation {dilation}."
        )
    out = (size - 1) * stride - 2 * padding + dilation * (window - 1) + 1 + extra
    if isinstance(out, int) and out > INT64_MAX:
        raise RuntimeError(f"The output would have size {out}, which does not fit 64 bits.")
    return out, (padding, padding if extra < stride else padding - extra)


def check_tensor(value: Tensor, argument: str, name: str) -> None:
    """TypeError when ``value`` is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: {argument} must be a Tensor, but is {value!r}.")


def check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None, dims: int, name: str) -> None:
    """Types, and the rank of the weight."""
    for argument, value in (("input", input), ("weight", weight), *([("bias", bias)] if bias is not None else [])):
        check_tensor(value, argument, name)
    if weight.dim() != dims + 2:
        raise RuntimeError(f"{name} takes a weight of {dims + 2} dimensions, but got shape {tuple(weight.shape)}.")


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
