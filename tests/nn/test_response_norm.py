"""Local response norm layers in a network: swap, explain, restore."""

from __future__ import annotations

import copy

import torch
from torch import nn

import fastconv
from fastconv.profiling.trace import trace


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5, alpha=0.5, k=2.0), nn.MaxPool2d(3, 2), nn.Conv2d(8, 4, 1)
    )


def test_swaps_computes_and_restores():
    model, x = network(), torch.randn(2, 3, 11, 9)
    expected = copy.deepcopy(model)
    report = fastconv.swap(model, example_inputs=x)
    row = next(row for row in report.rows if row.name == "2")
    assert type(model[2]) is fastconv.nn.LocalResponseNorm and row.kept is None
    assert row.problem == "lrn2d_n2c8h9w7_size5_f32nchw" and row.kernel.startswith("lrn2d/fprop_window_")
    for format in (torch.contiguous_format, torch.channels_last):
        inputs = [x.clone(memory_format=format).requires_grad_() for _ in range(2)]
        with trace() as calls:
            model(inputs[0]).sum().backward()
        expected(inputs[1]).sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
        assert {c.problem.pass_ for c in calls if c.problem.op == "lrn2d"} == {"fprop", "dgrad"}
    assert fastconv.restore(model) == 4
    assert [type(m) for m in model] == [type(m) for m in expected]


def test_only_the_exact_class_is_swapped():
    class Mine(nn.LocalResponseNorm):
        pass

    report = fastconv.swap(nn.Sequential(Mine(3), nn.CrossMapLRN2d(3), nn.LayerNorm(3), nn.LocalResponseNorm(3)))
    assert [(row.name, row.kept is None) for row in report.rows] == [("0", False), ("3", True)]
    assert "subclass of LocalResponseNorm" in report.rows[0].kept


def test_explained():
    """A layer's kernels, and what becomes of a volume."""
    layer = nn.LocalResponseNorm(3)
    (choice,) = fastconv.explain(layer, torch.randn(1, 4, 5, 6)).choices
    assert choice.chosen.startswith("lrn2d/fprop_window_") and "lrn2d/fprop_aten" in str(choice)
    outside = fastconv.explain(layer, torch.randn(1, 4, 2, 3, 4))
    assert not outside.choices and "PyTorch's own operator" in str(outside)


def test_traces_symbolically():
    model, x = network(), torch.randn(2, 3, 11, 9)
    expected = model(x)
    fastconv.swap(model)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
