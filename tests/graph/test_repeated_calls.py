"""A call of a plan that is like the last takes a shorter way, and none that is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastconv
from fastconv.graph import optimize


@pytest.fixture
def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 8)
    plan = optimize(model, x)
    plan(x)
    assert plan._repeat is not None
    return plan, model, x


def test_it_is_taken(made, monkeypatch):
    plan, model, x = made
    monkeypatch.setattr(plan, "_environment", lambda *_: pytest.fail("the long way"))
    torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plan(x + 1), model(x + 1).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x[:1],
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: nn.Parameter(x, requires_grad=False),
        lambda x: x[:0],
    ],
)
def test_other_inputs(made, other):
    plan, model, x = made
    for value in (other(x), other(x), x, other(x)):
        torch.testing.assert_close(plan(value), model(value).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (lambda x: x.double(), ValueError, "was made for torch.float32"),
        (lambda x: x[:, :, 1:], ValueError, "optimize the model again for other sizes"),
        (lambda x: x[:, :2], ValueError, "optimize the model again for other sizes"),
        (lambda x: x.clone().requires_grad_(), RuntimeError, "requires a gradient"),
        (lambda x: "x", TypeError, "must be a tensor"),
        (lambda x: x.to("meta"), ValueError, "on meta"),
    ],
)
def test_bad_inputs_get_the_same_sentences(made, bad, error, words):
    plan, model, x = made
    with pytest.raises(error, match=words):
        plan(bad(x))
    torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_more_arguments(made):
    plan, _, x = made
    with pytest.raises(TypeError, match="takes 1 inputs"):
        plan(x, x)
    with pytest.raises(TypeError, match="takes 1 inputs"):
        plan()


def test_changed_weights(made):
    plan, model, x = made
    with torch.no_grad():
        model[0].bias.add_(1)
    with pytest.raises(RuntimeError, match="changed after the plan was made"):
        plan(x)
    plan.refresh()
    for _ in range(2):
        torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_other_settings_and_threads_make_other_programs(made):
    plan, model, x = made
    unit = plan.units[0]
    with fastconv.config(isa="scalar"):
        torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-5, atol=1e-5)
    assert len(unit.programs) == 2
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    assert len(unit.programs) == 3
