"""A convolution, its training batch norm and what follows as one function: on the CPU the functions one by one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastconv import functional


def composed(x, w, mean, variance, scale, shift, residual=None, pointwise=None, activation="none", stride=1):
    f = torch.nn.functional
    y = f.batch_norm(f.conv2d(x, w, None, stride, 1), mean, variance, scale, shift, True, 0.3, 1e-3)
    y = y if residual is None else y + residual
    y = y.relu() if activation == "relu" else y
    return y if pointwise is None else f.conv2d(y, pointwise)


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("behind", ["nothing", "residual", "pointwise"])
def test_equals_torchs_functions(behind, activation):
    x, w = torch.randn(2, 4, 7, 6), torch.randn(5, 4, 3, 3)
    extra = {"residual": torch.randn(2, 5, 4, 3)} if behind == "residual" else {}
    extra |= {"pointwise": torch.randn(3, 5, 1, 1)} if behind == "pointwise" else {}
    affine, results = (torch.rand(5), torch.randn(5)), []
    for function, options in (
        (functional.conv2d_batch_norm, {"padding": 1, "momentum": 0.3, "eps": 1e-3}),
        (composed, {}),
    ):
        running = torch.zeros(5), torch.ones(5)
        y = function(x, w, *running, *affine, stride=2, activation=activation, **extra, **options)
        results.append((y, *running))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)


def test_its_derivatives_are_right_to_second_order():
    def function(x, w, scale, shift, p):
        return functional.conv2d_batch_norm(x, w, None, None, scale, shift, activation="relu", pointwise=p)

    shapes = ((2, 2, 4, 3), (3, 2, 2, 2), (3,), (3,), (2, 3, 1, 1))
    leaves = tuple(torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"activation": "tanh"}, "activation is one of none, relu, not 'tanh'"),
        ({"residual": torch.ones(2, 5, 2, 2), "pointwise": torch.ones(3, 5, 1, 1)}, "give one of them"),
    ],
)
def test_bad_arguments_are_named(options, part):
    with pytest.raises(ValueError, match=part):
        functional.conv2d_batch_norm(torch.ones(2, 4, 4, 4), torch.ones(5, 4, 3, 3), None, None, **options)
