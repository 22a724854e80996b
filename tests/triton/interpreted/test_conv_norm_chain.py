"""``functional.conv2d_batch_norm`` with a training norm behind its second convolution too: a residual block's half."""

from __future__ import annotations

import pytest
import torch

from fastconv import functional
from fastconv.functional import conv_norm

F = torch.nn.functional
EPS, MOMENTUM = 1e-3, 0.3


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """The kernels of GPUs, interpreted for CPU tensors."""
    monkeypatch.setattr(conv_norm, "DEVICES", ("cpu",))


def activated(x, activation):
    return x if activation == "none" else getattr(F, activation)(x)


def composed(t, activations):
    """By torch's functions."""
    z = F.conv2d(t["x"], t["w"], None, (1, 2), (1, 0))
    y = activated(F.batch_norm(z, t["mean"], t["var"], t["scale"], t["shift"], True, MOMENTUM, EPS), activations[0])
    z = F.conv2d(y, t["second"], None, 1, (0, 1))
    y = F.batch_norm(z, t["mean2"], t["var2"], t["scale2"], t["shift2"], True, MOMENTUM, EPS)
    return activated(y + t["residual"] if "residual" in t else y, activations[1])


def own(t, activations):
    first, second = activations
    return functional.conv2d_batch_norm(
        *(t[name] for name in ("x", "w", "mean", "var", "scale", "shift")),
        stride=(1, 2),
        padding=(1, 0),
        momentum=MOMENTUM,
        eps=EPS,
        activation=first,
        residual=t.get("residual"),
        second=t["second"],
        second_padding=(0, 1),
        second_running_mean=t["mean2"],
        second_running_var=t["var2"],
        second_norm_weight=t["scale2"],
        second_norm_bias=t["shift2"],
        second_activation=second,
    )


def operands(format, residual):
    t = {"x": torch.randn(2, 3, 5, 8), "w": torch.randn(6, 3, 3, 2), "second": torch.randn(5, 6, 2, 3)}
    t |= {"residual": torch.randn(2, 5, 4, 4)} if residual else {}
    t = {name: value.to(memory_format=format) for name, value in t.items()}
    for tail, channels in (("", 6), ("2", 5)):
        t |= {f"scale{tail}": torch.rand(channels) + 0.5, f"shift{tail}": torch.randn(channels)}
        t |= {f"mean{tail}": torch.randn(channels), f"var{tail}": torch.rand(channels)}
    return t


def results(function, t, activations, order, dtype):
    """Result, running statistics, and gradients of one or both orders."""
    t = {name: value.detach().clone().to(dtype) for name, value in t.items()}
    inputs = [value.requires_grad_() for name, value in t.items() if not name.startswith(("mean", "var"))]
    y = function(t, activations)
    probe = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape).requires_grad_()
    first = torch.autograd.grad(y, inputs, probe, create_graph=order == 2)
    found = [y, *(value for name, value in t.items() if name.startswith(("mean", "var"))), *first]
    if order == 2:
        total = sum((g * torch.linspace(-1, 2, g.numel(), dtype=dtype).view(g.shape)).sum() for g in first)
        found += torch.autograd.grad(total, [*inputs, probe], allow_unused=True, materialize_grads=True)
    return found


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("residual", "activations"),
    [(False, ("relu", "none")), (True, ("relu", "relu")), (True, ("silu", "silu")), (True, ("none", "none"))],
)
def test_two_norms_are_torchs_in_double(residual, activations, order, format):
    t = operands(format, residual)
    mine = results(own, t, activations, order, torch.float32)
    exact = results(composed, t, activations, order, torch.float64)
    for i, (a, b) in enumerate(zip(mine, exact, strict=True)):
        close = 1e-4 if order == 1 else 2e-3
        torch.testing.assert_close(a.double(), b, rtol=close, atol=close, msg=lambda m, i=i: f"{i}: {m}")
    assert mine[0].stride() == exact[0].stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_second_norm_has_the_bits_of_one_taken_apart(dtype):
    """Its statistics are those of the second convolution's result, as it was stored."""
    t = {
        name: value.to(dtype) if value.dim() == 4 else value
        for name, value in operands(torch.channels_last, True).items()
    }
    ops, geometry = torch.ops.fastconv, ([1, 2, 1, 1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 1, 1, 1, 1, 1])
    y = own(t, ("relu", "relu"))
    first = ops.conv2d_moments(t["x"], t["w"], geometry[0])
    given = (*first, t["scale"], t["shift"], t["second"], geometry[1], EPS, "relu", 0.0)
    z, stats = ops.norm_conv2d(*given, True)
    assert torch.equal(z, ops.norm_conv2d(*given, False)[0])
    variance, mean = torch.var_mean(z.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(stats.double(), torch.stack([mean, variance]), rtol=1e-5, atol=1e-6)
    assert torch.equal(y, ops.norm_apply(z, stats, t["scale2"], t["shift2"], t["residual"], EPS, "relu", 0.0))


def test_a_call_that_fails_moves_no_running_statistics():
    t = operands(torch.contiguous_format, True)
    before = {name: value.clone() for name, value in t.items()}
    with pytest.raises(RuntimeError, match="residual has shape"):
        own(t | {"residual": torch.randn(2, 5, 4, 5)}, ("relu", "relu"))
    assert all(torch.equal(before[name], t[name]) for name in ("mean", "var", "mean2", "var2"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_elsewhere_torchs_functions_take_their_turns(device, monkeypatch):
    """And on the device of the kernels they do not."""
    monkeypatch.setattr(conv_norm, "DEVICES", (device,))
    calls = []
    plain = conv_norm.batch_norm
    monkeypatch.setattr(conv_norm, "batch_norm", lambda *given: calls.append(1) or plain(*given))
    t = operands(torch.contiguous_format, True)
    expected = composed({name: value.double() for name, value in t.items()}, ("relu", "silu"))
    torch.testing.assert_close(own(t, ("relu", "silu")).double(), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == (0 if device == "cpu" else 2)
