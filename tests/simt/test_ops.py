"""The operators on the CUDA kernels alone, emulated: what autograd and transposed layers ask of them reaches them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import fastconv
from fastconv import dispatch, registry
from fastconv import functional as ours
from fastconv.testing import emulator, inputs

theirs = nn.functional


def allocating(kernel, problem, **operands):
    """As a row of the list is called: the result is the kernel's to allocate."""
    blank = torch.empty(inputs.shapes(problem)[inputs.written(problem)], dtype=inputs.DTYPES[problem.dtype])
    if inputs.written(problem) != "w":
        blank = blank.contiguous(memory_format=inputs.memory_format(problem))
    return kernel.run(problem, out=blank, **operands)


@pytest.fixture(autouse=True)
def only_ours(monkeypatch):
    rows = tuple(replace(k, run=partial(allocating, k)) for k in emulator.rows())
    monkeypatch.setattr(registry, "kernels", lambda: rows)
    with fastconv.config(strict=True):
        yield
    dispatch.forget()


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small integers: sums of their products are exact in any order."""
    return torch.randint(-2, 3, shape).to(dtype).requires_grad_()


def assert_same(function: str, tensors: list[torch.Tensor], format: torch.memory_format, **options) -> None:
    results = []
    for library in (ours, theirs):
        call = getattr(library, function)
        y = call(tensors[0].contiguous(memory_format=format), *tensors[1:], **options)
        probe = torch.arange(y.numel()).remainder(5).sub(2).to(y.dtype).view(y.shape)
        results.append((y, *torch.autograd.grad(y, tensors, probe)))
    for mine, torchs in zip(*results, strict=True):
        assert torch.equal(mine, torchs)
    assert results[0][0].stride() == results[1][0].stride()


FORMATS = pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
CONVS = {
    "dense": ((2, 3, 7, 6), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    "grouped": ((1, 4, 6, 5), (6, 2, 2, 3), {"groups": 2, "dilation": (1, 2), "padding": 1}),
    "depthwise": ((2, 3, 5, 6), (3, 1, 3, 2), {"groups": 3, "stride": (1, 2)}),
}


@FORMATS
@pytest.mark.parametrize("name", CONVS)
def test_convolutions_and_their_gradients_equal_torch(name, format):
    x_shape, w_shape, options = CONVS[name]
    tensors = [integers(*x_shape), integers(*w_shape), integers(w_shape[0])]
    assert_same("conv2d", tensors, format, **options)


@FORMATS
def test_transposed_convolution_is_the_input_gradient(format):
    tensors = [integers(2, 4, 5, 6), integers(4, 3, 3, 2), integers(3)]
    assert_same("conv_transpose2d", tensors, format, stride=2, padding=1, output_padding=1)


@FORMATS
@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("max_pool2d", {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("avg_pool2d", {"kernel_size": 2, "stride": 2}),
        ("adaptive_avg_pool2d", {"output_size": (2, 3)}),
        ("adaptive_max_pool2d", {"output_size": (2, 3)}),
    ],
)
def test_pools_and_their_gradients_equal_torch(function, options, format):
    assert_same(function, [integers(2, 8, 8, 6)], format, **options)
