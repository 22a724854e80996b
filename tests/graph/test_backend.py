"""torch.compile(backend="fastconv"): plans where there are graphs, PyTorch where a gradient is wanted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastconv.graph import backend
from tests.graph import networks


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def made(monkeypatch) -> list:
    """The plans that the backend makes."""
    plans = []
    original = backend.Optimized

    def record(*args, **kwargs):
        plans.append(original(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(backend, "Optimized", record)
    return plans


@pytest.mark.parametrize("name", networks.PLANNED)
def test_a_compiled_network_is_one_plan_and_right(name, made):
    model, x = networks.make(name, torch.float32)
    compiled = torch.compile(model, backend="fastconv")
    with torch.no_grad():
        y, e = compiled(x), model(x)
    torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-5)
    assert len(made) == 1 and len(made[0].report.planned) == 1


def test_any_batch_with_one_more_graph(made):
    model, x = networks.make("residual", torch.float32)
    compiled = torch.compile(model, backend="fastconv")
    with torch.no_grad():
        for batch in (2, 3, 5, 7):
            given = torch.randn(batch, *x.shape[1:])
            torch.testing.assert_close(compiled(given), model(given), rtol=1e-4, atol=1e-5)
    assert len(made) <= 2


def test_graph_breaks_are_tolerated(made):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

        def forward(self, x):
            y = self.a(x)
            torch._dynamo.graph_break()
            return self.b(y)

    model, x = Breaks().eval(), torch.randn(2, 3, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="fastconv")(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(made) == 2


def test_changed_weights_are_used(made):
    model, x = networks.make("residual", torch.float32)
    compiled = torch.compile(model, backend="fastconv")
    with torch.no_grad():
        compiled(x)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
        model.load_state_dict({name: t * 0.9 for name, t in model.state_dict().items()})
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(made) == 3


def test_training_stays_pytorchs(made):
    model, x = networks.make("residual", torch.float32)
    compiled = torch.compile(model, backend="fastconv")
    compiled(x).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)
    assert not made


def test_a_size_that_the_graph_reads_is_measured(made):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(x) * x.shape[0]

    model = Sized().eval()
    compiled = torch.compile(model, backend="fastconv", dynamic=True)
    with torch.no_grad():
        for batch in (2, 5):
            x = torch.randn(batch, 3, 4, 5)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_unknown_options_are_refused():
    model, x = networks.make("residual", torch.float32)
    with pytest.raises(Exception, match="has no option 'tuned'"), torch.no_grad():
        torch.compile(model, backend="fastconv", options={"tuned": True})(x)
