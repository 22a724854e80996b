"""What a call costs before any arithmetic: a 1x1x1 convolution, ours and torch's side by side.

    pytest benchmarks/bench_overhead.py --benchmark-group-by=group

The median of a group's rows is the whole way from Python to the kernel and back. Run it on an idle machine.
"""

from __future__ import annotations

import pytest
import torch

from fastconv import functional


class Conv2d(torch.nn.Conv2d):
    """The drop-in layer at its leanest."""

    def forward(self, input):
        return functional.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


FUNCTIONS = {"fastconv": functional, "torch": torch.nn.functional}
LAYERS = {"fastconv": Conv2d, "torch": torch.nn.Conv2d}
GRADIENT = pytest.mark.parametrize("gradient", [False, True], ids=["no_grad", "grad"])
WHOSE = pytest.mark.parametrize("whose", ["fastconv", "torch"])


@WHOSE
@GRADIENT
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "conv1d"])
def test_function(benchmark, whose, gradient, name):
    benchmark.group = f"{name}, {'with' if gradient else 'without'} gradient"
    shape = (1, 1, 1) if name == "conv1d" else (1, 1, 1, 1)
    x, weight = torch.randn(shape), torch.randn(shape, requires_grad=gradient)
    benchmark(getattr(FUNCTIONS[whose], name), x, weight)


@WHOSE
@GRADIENT
def test_layer(benchmark, whose, gradient):
    benchmark.group = f"Conv2d layer, {'with' if gradient else 'without'} gradient"
    layer, x = LAYERS[whose](1, 1, 1), torch.randn(1, 1, 1, 1)
    with torch.set_grad_enabled(gradient):
        benchmark(layer, x)


@WHOSE
def test_layer_forward_and_backward(benchmark, whose):
    benchmark.group = "Conv2d layer, forward and backward"
    layer, x = LAYERS[whose](1, 1, 1), torch.randn(1, 1, 1, 1, requires_grad=True)
    gradient = torch.ones(1, 1, 1, 1)
    benchmark(lambda: layer(x).backward(gradient))
