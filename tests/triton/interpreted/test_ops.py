"""The operators on Triton's kernels alone: forward, both gradients, second order, autocast and tracing, as any backend.

Interpreted kernels take CPU tensors, so the rows are listed here as if they ran on the CPU, and ``strict`` keeps every
other row out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastconv
from fastconv import dispatch, registry
from fastconv import functional as ours

theirs = nn.functional


@pytest.fixture(autouse=True)
def only_triton(monkeypatch):
    listed = registry.kernels()
    rows = tuple(replace(k, devices=("cpu", "cuda")) if k.target == "triton" else k for k in listed)
    monkeypatch.setattr(registry, "kernels", lambda: rows)
    with fastconv.config(kernel="*_triton", strict=True):
        yield
    dispatch.forget()


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small integers: sums of their products are exact in any order."""
    return torch.randint(-2, 3, shape).to(dtype).requires_grad_()


CONVS = {
    "dense": ((2, 3, 7, 6), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "grouped": ((1, 4, 6, 5), (6, 2, 2, 3), {"groups": 2, "dilation": (1, 2), "padding": 1}),
    "depthwise": ((2, 3, 5, 6), (3, 1, 3, 2), {"groups": 3, "stride": (1, 2)}),
    "pointwise": ((2, 3, 4, 5), (5, 3, 1, 1), {}),
}


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", CONVS)
def test_convolution_and_its_gradients_equal_torch(name, format):
    x_shape, w_shape, options = CONVS[name]
    x, w, b = integers(*x_shape), integers(*w_shape), integers(w_shape[0])
    results = []
    for library in (ours, theirs):
        y = library.conv2d(x.contiguous(memory_format=format), w, b, **options)
        probe = torch.arange(y.numel()).remainder(5).sub(2).float().view_as(y)
        results.append((y, *torch.autograd.grad(y, (x, w, b), probe)))
    for mine, torchs in zip(*results, strict=True):
        assert torch.equal(mine, torchs)
    assert results[0][0].stride() == results[1][0].stride()


def test_transposed_convolution_is_the_input_gradient():
    x, w = integers(2, 4, 5, 3), integers(4, 3, 3, 2)
    options = {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}
    assert torch.equal(ours.conv_transpose2d(x, w, **options), theirs.conv_transpose2d(x, w, **options))


def test_second_order_equals_torch():
    x, w = integers(1, 2, 5, 4), integers(3, 2, 3, 2)
    seconds = []
    for library in (ours, theirs):
        y = library.conv2d(x, w, padding=(1, 0))
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(dx.square().sum(), (x, w)))
    assert all(torch.equal(a, b) for a, b in zip(*seconds, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_its_dtype(dtype):
    x, w = integers(1, 2, 5, 4), integers(3, 2, 3, 2)
    with torch.autocast("cpu", dtype=dtype):
        y = ours.conv2d(x, w)
    assert y.dtype == dtype
    assert torch.equal(y.float(), theirs.conv2d(x, w))


POOLS = {
    "max": lambda f, x: f.max_pool2d(x, (3, 2), 2, 1, ceil_mode=True),
    "average": lambda f, x: f.avg_pool2d(x, (2, 3), (1, 2), (0, 1), count_include_pad=False),
    "adaptive max": lambda f, x: f.adaptive_max_pool2d(x, (2, 3)),
    "adaptive average": lambda f, x: f.adaptive_avg_pool2d(x, (3, 2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_and_their_gradients_are_torchs(name):
    x = integers(2, 3, 7, 6)
    results = []
    for library in (ours, theirs):
        y = POOLS[name](library, x)
        results.append((y, *torch.autograd.grad(y, x, torch.ones_like(y))))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_and_its_gradients_are_torchs(training):
    x, w, b = torch.randn(3, 5, 4, 6, requires_grad=True), torch.rand(5, requires_grad=True), integers(5)
    results = []
    for library in (ours, theirs):
        mean, variance = torch.zeros(5), torch.ones(5)
        y = library.batch_norm(x, mean, variance, w, b, training)
        gradients = torch.autograd.grad(y, (x, w, b), torch.linspace(-1, 1, y.numel()).view_as(y))
        results.append((y, mean, variance, *gradients))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)


def test_a_traced_call_runs_the_same_kernel():
    x, w = integers(1, 2, 5, 4).detach(), integers(3, 2, 3, 2).detach()
    traced = torch.compile(lambda x, w: ours.conv2d(x, w).relu(), backend="aot_eager", fullgraph=True)
    assert torch.equal(traced(x, w), theirs.conv2d(x, w).relu())
