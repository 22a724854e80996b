"""Pools of inputs that lie in memory in any way: torch's values, indices, gradients and strides."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv import config, functional
from tests.ops.memory import scattered

CASES_PER_TEST = 40
DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16"}
POOLS = {
    "max": lambda m, x: m.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "max_ceil": lambda m, x: m.max_pool2d(x, 2, 3, 1, ceil_mode=True),
    "max_indices": lambda m, x: m.max_pool2d(x, (2, 3), 2, 1, return_indices=True),
    "avg": lambda m, x: m.avg_pool2d(x, (2, 3), 2, 1, count_include_pad=False),
    "adaptive_avg": lambda m, x: m.adaptive_avg_pool2d(x, (2, 3)),
    "adaptive_max": lambda m, x: m.adaptive_max_pool2d(x, (3, 2), return_indices=True),
}


def outputs(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: DTYPES[d])
@pytest.mark.parametrize("name", POOLS)
def test_pools_of_scattered_inputs(name, dtype):
    rng = random.Random(f"{name} {dtype}")
    for _ in range(CASES_PER_TEST):
        shape = [rng.choice(sizes) for sizes in ((1, 2, 3), (1, 2, 5, 17), (3, 4, 7), (3, 5, 8))]
        x = scattered(rng, torch.randint(-9, 10, shape).to(dtype))
        text = f"{name} of {x.shape} {x.stride()} from {x.storage_offset()}"
        leaves = [x.detach().requires_grad_() for _ in range(2)]
        with config(kernel="-*_aten"):
            ours, plain = outputs(POOLS[name](functional, leaves[0])), outputs(POOLS[name](functional, x))
        theirs = outputs(POOLS[name](torch.nn.functional, leaves[1]))
        for a, b, c in zip(ours, theirs, plain, strict=True):
            assert a.stride() == b.stride() == c.stride() and a.dtype == b.dtype == c.dtype, text
            assert torch.equal(a, c), text
            torch.testing.assert_close(a, b, msg=lambda m, t=text: f"{t}: {m}")
        gradient = scattered(rng, torch.randint(-3, 4, ours[0].shape).to(dtype))
        mine = torch.autograd.grad(ours[0], leaves[0], gradient)[0]
        exact = x.detach().double().contiguous().requires_grad_()
        y = outputs(POOLS[name](torch.nn.functional, exact))[0]
        torch.testing.assert_close(mine.double(), torch.autograd.grad(y, exact, gradient.double())[0],
                                   rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)  # fmt: skip
