"""The many ways a tensor may lie in memory."""

from __future__ import annotations

import random

import torch
from torch import Tensor


def scattered(rng: random.Random, t: Tensor) -> Tensor:
    """The values of ``t`` in one of the many ways a tensor may lie in memory."""

    def dense() -> Tensor:
        return t.contiguous(memory_format=rng.choice((torch.contiguous_format, torch.channels_last)))

    def permuted() -> Tensor:
        order = rng.sample(range(4), 4)
        return t.permute(order).contiguous().permute([order.index(i) for i in range(4)])

    def sliced() -> Tensor:
        axis, extra = rng.randrange(4), rng.randint(1, 3)
        shape = list(t.shape)
        shape[axis] += extra
        buffer = torch.zeros(shape, dtype=t.dtype)
        if rng.random() < 0.5:
            buffer = buffer.contiguous(memory_format=torch.channels_last)
        return buffer.narrow(axis, rng.randint(0, extra), t.shape[axis]).copy_(t)

    def stepped() -> Tensor:
        buffer = torch.zeros([2 * size for size in t.shape], dtype=t.dtype)
        if rng.random() < 0.5:
            buffer = buffer.contiguous(memory_format=torch.channels_last)
        return buffer[1::2, ::2, 1::2, ::2].copy_(t)

    def expanded() -> Tensor:
        axis = rng.randrange(4)
        return t.narrow(axis, 0, 1).expand(t.shape)

    def odd_strides_of_single_elements() -> Tensor:
        base = dense()
        strides = [
            rng.choice((0, 1, 3, 7, 100)) if size == 1 else step
            for size, step in zip(base.shape, base.stride(), strict=True)
        ]
        return base.as_strided(base.shape, strides)

    def odd_offset() -> Tensor:
        base = dense()
        buffer = torch.zeros(t.numel() + 1, dtype=t.dtype)
        return buffer.as_strided(base.shape, base.stride(), 1).copy_(t)

    ways = (dense, dense, permuted, sliced, stepped, expanded, odd_strides_of_single_elements, odd_offset)
    return rng.choice(ways)()
