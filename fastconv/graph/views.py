"""Tensors of a plan that are looked at in another order than they lie: a buffer's elements by strides.

PyTorch's own view operators, on tensors without data, do the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fastconv.graph.values import Buffer, Value


@dataclass(frozen=True, eq=False)
class View:
    """A tensor on the meta device whose storage stands for the buffer's elements."""

    buffer: Buffer
    dtype: str
    tensor: Tensor

    def through(self, function: Callable[[Tensor], Tensor]) -> View:
        """The view that one of PyTorch's view operators makes of it; RuntimeError where there is none."""
        return View(self.buffer, self.dtype, function(self.tensor))

    @property
    def whole(self) -> int:
        """The elements of the buffer."""
        return self.tensor.untyped_storage().nbytes() // self.tensor.itemsize

    @property
    def place(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Sizes, strides and first element."""
        return tuple(self.tensor.shape), self.tensor.stride(), self.tensor.storage_offset()


def of(value: Value, shape: Sequence[int]) -> View:
    """A value under its shape in torch."""
    width = value.width or value.c
    n, c, h, w = value.n, value.c, value.h, value.w
    flat = torch.empty(n * h * w * width, device="meta")
    if value.layout == "nchw":
        return View(value.buffer, value.dtype, flat.view(n, c, h, w))
    pixels = flat.view(n, h, w, width).narrow(3, value.offset, c)
    if len(shape) == 4:
        return View(value.buffer, value.dtype, pixels.permute(0, 3, 1, 2))
    rows = pixels.reshape(n * h * w, c) if value.width == 0 else pixels.flatten(0, 2)
    return View(value.buffer, value.dtype, rows.view(*shape[:-1], c))


def dense(buffer: Buffer, dtype: str, shape: Sequence[int]) -> View:
    """A whole buffer in torch's order."""
    return View(buffer, dtype, torch.empty(*shape, device="meta"))


def as_map(view: View) -> Value | None:
    """A tensor of four axes as channels_last, or None where its elements lie in another order."""
    n, c, h, w = view.tensor.shape
    return _strict(view, view.tensor.permute(0, 2, 3, 1), (n, c, h, w))


def as_rows(view: View, axes: int = 1) -> Value | None:
    """Its last ``axes`` axes as rows, one behind the other in torch's order, or None."""
    columns = prod(view.tensor.shape[-axes:])
    return _strict(view, view.tensor, (prod(view.tensor.shape[:-axes]), columns, 1, 1))


def order(view: View, axes: int = 1) -> list[int]:
    """The axes but the last ones in the order in which they lie, those of one place where they stand."""
    outer = list(range(view.tensor.dim() - axes))
    moving = [axis for axis in outer if view.tensor.shape[axis] > 1]
    inward = iter(sorted(moving, key=lambda axis: -view.tensor.stride(axis)))
    return [next(inward) if axis in moving else axis for axis in outer]


def lying(view: View, outer: Sequence[int]) -> View:
    """With its first axes in another order."""
    rest = range(len(outer), view.tensor.dim())
    return view.through(lambda t: t.permute(*outer, *rest))


def runs(view: View) -> tuple[list[int], list[int]]:
    """Sizes and strides of as few axes as hold its elements in torch's order."""
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(view.tensor.shape, view.tensor.stride(), strict=True):
        if size == 1:
            continue
        if sizes and strides[-1] == size * stride:
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    return sizes or [1], strides or [1]


def _strict(view: View, ordered: Tensor, head: tuple[int, int, int, int]) -> Value | None:
    """The value N C H W of rows of C that lie ``ordered`` in equal steps, which fill the buffer."""
    n, c, h, w = head
    try:
        rows = ordered.view(n * h * w, c)
    except RuntimeError:
        return None
    count, whole, offset = rows.shape[0], view.whole, rows.storage_offset()
    width = whole if count == 1 else rows.stride(0)
    if (c > 1 and rows.stride(1) != 1) or count * width != whole or offset + c > width:
        return None
    return Value(view.buffer, n, c, h, w, view.dtype, "nhwc", offset, 0 if width == c else width)
