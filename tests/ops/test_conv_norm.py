"""A convolution, its training batch norm and what follows as one function: on the CPU the functions one by one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fastconv import functional
from fastconv.functional import conv_norm


def composed(x, w, mean, variance, scale, shift, residual=None, second=None, activation="none", stride=1):
    f = torch.nn.functional
    y = f.batch_norm(f.conv2d(x, w, None, stride, 1), mean, variance, scale, shift, True, 0.3, 1e-3)
    y = y if residual is None else y + residual
    own = {
        "none": lambda t: t,
        "leaky_relu": lambda t: f.leaky_relu(t, 0.2),
        "gelutanh": lambda t: f.gelu(t, approximate="tanh"),
    }
    y = own.get(activation, getattr(f, activation, None))(y)
    return y if second is None else f.conv2d(y, second)


@pytest.mark.parametrize("activation", conv_norm.ACTIVATIONS)
@pytest.mark.parametrize("behind", ["nothing", "residual", "second"])
def test_equals_torchs_functions(behind, activation):
    x, w = torch.randn(2, 4, 7, 6), torch.randn(5, 4, 3, 3)
    extra = {"residual": torch.randn(2, 5, 4, 3)} if behind == "residual" else {}
    extra |= {"second": torch.randn(3, 5, 1, 1)} if behind == "second" else {}
    affine, results = (torch.rand(5), torch.randn(5)), []
    for function, options in (
        (functional.conv2d_batch_norm, {"padding": 1, "momentum": 0.3, "eps": 1e-3, "alpha": 0.2}),
        (composed, {}),
    ):
        running = torch.zeros(5), torch.ones(5)
        y = function(x, w, *running, *affine, stride=2, activation=activation, **extra, **options)
        results.append((y, *running))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-4)


def test_its_derivatives_are_right_to_second_order():
    def function(x, w, scale, shift, second):
        more = {"second": second, "second_padding": (1, 0), "second_stride": (1, 2)}
        return functional.conv2d_batch_norm(x, w, None, None, scale, shift, activation="silu", **more)

    shapes = ((2, 2, 4, 3), (3, 2, 2, 2), (3,), (3,), (2, 3, 2, 1))
    leaves = tuple(torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


def test_compiles_whole():
    torch._dynamo.reset()
    x, w, second = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 2, 2, requires_grad=True), torch.randn(5, 4, 3, 3)

    def function(x, running):
        return functional.conv2d_batch_norm(x, w, running, running + 1, activation="relu6", second=second)

    means = torch.zeros(4), torch.zeros(4)
    results = [
        call(x, mean)
        for call, mean in zip(
            (torch.compile(function, fullgraph=True, backend="aot_eager"), function), means, strict=True
        )
    ]
    assert torch.equal(*results) and torch.equal(*means) and means[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"activation": "tanh"}, r"activation is one of none, relu, .*, gelutanh, not 'tanh'"),
        ({"residual": torch.ones(2, 5, 2, 2), "second": torch.ones(3, 5, 1, 1)}, "give one of them"),
    ],
)
def test_bad_arguments_are_named(options, part):
    with pytest.raises(ValueError, match=part):
        functional.conv2d_batch_norm(torch.ones(2, 4, 4, 4), torch.ones(5, 4, 3, 3), None, None, **options)
