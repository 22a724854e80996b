"""A weight that changes is used at the next call, however it was changed: nothing derived from it outlives a call."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import fastconv

EDITS = 1000


def by_fused_optimizer(layer: nn.Module, target: torch.Tensor) -> None:
    """One step of the fused optimizer from the old weight to exactly ``target``: all numbers are small integers."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, fused=True)
    layer.weight.grad = layer.weight.detach() - target
    optimizer.step()


def by_data(layer: nn.Module, target: torch.Tensor) -> None:
    layer.weight.data.copy_(target)


def by_new_data(layer: nn.Module, target: torch.Tensor) -> None:
    layer.weight.data = target.clone()


def by_numpy(layer: nn.Module, target: torch.Tensor) -> None:
    layer.weight.detach().numpy()[...] = target.numpy()


def by_dlpack(layer: nn.Module, target: torch.Tensor) -> None:
    np.copyto(np.asarray(torch.from_dlpack(torch.to_dlpack(layer.weight.detach()))), target.numpy())


def by_state_dict(layer: nn.Module, target: torch.Tensor) -> None:
    layer.load_state_dict({"weight": target})


def by_no_grad(layer: nn.Module, target: torch.Tensor) -> None:
    with torch.no_grad():
        layer.weight.sub_(layer.weight).add_(target)


def by_half(layer: nn.Module, target: torch.Tensor) -> None:
    layer.half()
    layer.weight.data.copy_(target)
    layer.float()


def by_to(layer: nn.Module, target: torch.Tensor) -> None:
    layer.to(torch.float64).weight.data.copy_(target)
    layer.to(torch.float32, memory_format=torch.channels_last)


WAYS = [
    by_fused_optimizer,
    by_data,
    by_new_data,
    by_numpy,
    by_dlpack,
    by_state_dict,
    by_no_grad,
    by_half,
    by_to,
]


@pytest.mark.parametrize("kernel", ["*", "-*aten"])
def test_no_stale_weight_in_a_thousand_edits(kernel):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    nn.init.zeros_(layer.weight)
    fastconv.swap(layer)
    x = torch.randint(-2, 3, (1, 4, 5, 6)).float()
    stale = []
    with fastconv.config(kernel=kernel):
        for edit, change in zip(range(EDITS), itertools.cycle(WAYS), strict=False):
            target = torch.randint(-2, 3, layer.weight.shape).float()
            change(layer, target)
            if not torch.equal(layer(x), nn.functional.conv2d(x, target, padding=1)):
                stale.append((edit, change.__name__))
    assert stale == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_swapped_layer_follows_to(dtype):
    layer = nn.Conv2d(4, 8, 3)
    fastconv.swap(layer)
    layer.to(dtype)
    x = torch.randn(1, 4, 5, 6, dtype=dtype)
    expected = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(
        layer(x).double(), expected, rtol=torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )
