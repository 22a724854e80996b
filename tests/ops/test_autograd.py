"""Every order and mode of derivative runs on our kernels, or raises."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fastconv
from fastconv import functional
from fastconv.profiling.trace import trace
from tests.ops.cases import CASES, Case

BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
DIFFERENTIABLE_ACTIVATIONS = [
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "silu",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "gelu",
    "gelutanh",
]


@pytest.fixture(autouse=True)
def _own_kernels():
    """No row of PyTorch's may stand in for ours."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny calls: threads would only wait for each other
    with fastconv.config(kernel="-*_aten"), trace() as calls:
        yield
    torch.set_num_threads(threads)
    assert not [call.kernel for call in calls if call.kernel.endswith("_aten")]


@BY_CASE
def test_gradcheck(case: Case):
    """Reverse, forward and batched first derivatives."""
    with trace() as calls:
        assert gradcheck(case.ours, case.tensors(), check_forward_ad=True)
    assert {call.problem.pass_ for call in calls} == {"fprop", "dgrad", "wgrad"}


@BY_CASE
def test_gradgradcheck(case: Case):
    """Reverse over reverse, and forward over reverse."""
    assert gradgradcheck(case.ours, case.tensors(), check_fwd_over_rev=True)


@pytest.mark.parametrize("activation", DIFFERENTIABLE_ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_of_the_fused_activation(activation, with_residual):
    torch.manual_seed(1)
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 4, 5), (3, 2, 2, 3), 3))
    residual = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)

    def function(x, weight, bias, residual):
        return functional.conv2d_act(
            x, weight, bias, activation=activation, alpha=0.1, residual=residual if with_residual else None
        )

    assert gradcheck(function, (x, weight, bias, residual), check_forward_ad=True)
    if activation != "hardsigmoid":  # torch's has no second derivative
        assert gradgradcheck(function, (x, weight, bias, residual))


@BY_CASE
@pytest.mark.parametrize("wanted", range(8))
def test_only_wanted_gradients_are_computed(case: Case, wanted):
    tensors = [t.requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(case.tensors(requires_grad=False))]
    with trace() as calls:
        y = case.ours(*tensors)
        assert y.requires_grad == bool(wanted)
        if wanted:
            y.sum().backward()
    expected = ("fprop", "dgrad") if "transpose" not in case.function else ("dgrad", "fprop")
    passes = [expected[0]] + [expected[1]] * (wanted & 1) + ["wgrad"] * (wanted >> 1 & 1)
    assert sorted(call.problem.pass_ for call in calls) == sorted(passes)
    assert [t.grad is not None for t in tensors] == [bool(wanted >> i & 1) for i in range(3)]


@BY_CASE
def test_gradients_equal_torchs(case: Case):
    x, weight, bias = case.tensors()
    y = case.theirs(x, weight, bias)
    grad = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(case.ours(x, weight, bias), (x, weight, bias), grad),
        torch.autograd.grad(y, (x, weight, bias), grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@BY_CASE
def test_forward_mode_is_never_a_silent_detach(case: Case):
    x, weight, bias = case.tensors(requires_grad=False)
    directions = [torch.randn_like(t) for t in (x, weight, bias)]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip((x, weight, bias), directions, strict=True)]
        ours = forward_ad.unpack_dual(case.ours(*duals))
        theirs = forward_ad.unpack_dual(case.theirs(*duals))
    torch.testing.assert_close(ours.primal, theirs.primal)
    torch.testing.assert_close(ours.tangent, theirs.tangent)


@BY_CASE
def test_functional_transforms_equal_torchs(case: Case):
    x, weight, bias = case.tensors(requires_grad=False)

    def both(transform):
        return transform(case.ours), transform(case.theirs)

    def loss(function):
        return lambda *tensors: function(*tensors).square().sum()

    for ours, theirs in (
        both(lambda f: torch.func.grad(loss(f), (0, 1, 2))(x, weight, bias)),
        both(lambda f: torch.func.jvp(f, (x, weight, bias), (x, weight, bias))),
        both(lambda f: torch.func.vjp(f, x, weight, bias)[1](f(x, weight, bias))),
        both(lambda f: torch.func.jacfwd(f, 1)(x, weight, bias)),
        both(lambda f: torch.func.jacrev(f, 0)(x, weight, bias)),
        both(lambda f: torch.func.vmap(f, (0, None, None))(torch.stack([x, 2 * x]), weight, bias)),
        both(lambda f: torch.func.vmap(f, (None, 1, 0))(x, torch.stack([weight, -weight], 1), torch.stack([bias] * 2))),
        both(lambda f: torch.func.vmap(torch.func.grad(loss(f)), (0, None))(torch.stack([x, 2 * x]), weight)),
    ):
        torch.testing.assert_close(ours, theirs)


@BY_CASE
def test_hessian_equals_torchs(case: Case):
    x, weight, _ = case.tensors(requires_grad=False)
    small = weight.flatten()[:2]

    def loss(function):
        def value(w):
            filter = torch.cat([w, weight.flatten()[2:]]).view_as(weight)
            return function(x, filter).pow(3).sum()

        return value

    for transform in (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
        torch.testing.assert_close(transform(loss(case.ours))(small), transform(loss(case.theirs))(small))


@BY_CASE
def test_inference_mode(case: Case):
    x, weight, bias = case.tensors(requires_grad=False)
    with torch.inference_mode():
        y = case.ours(x, weight, bias)
    assert y.is_inference()
    torch.testing.assert_close(y, case.theirs(x, weight, bias))


@BY_CASE
def test_deterministic_and_independent_of_threads(case: Case):
    """The same bits from every run and every number of threads, forward and backward."""
    tensors = case.tensors(torch.float32)

    def run():
        y = case.ours(*tensors)
        return [y, *torch.autograd.grad(y, tensors, torch.ones_like(y))]

    threads = torch.get_num_threads()
    first = run()
    try:
        torch.use_deterministic_algorithms(True)
        for count in (1, 2, 3, threads):
            torch.set_num_threads(count)
            for a, b in zip(first, run(), strict=True):
                assert torch.equal(a, b), f"{count} threads"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


@BY_CASE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_torchs_dtypes(case: Case, dtype):
    def results(function):
        x, weight, bias = case.tensors(torch.float32)
        with torch.autocast("cpu", dtype=dtype):
            y = function(x, weight, bias)
            with torch.autocast("cpu", enabled=False):
                plain = function(x, weight, bias)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                nested = function(*case.tensors(torch.float32))
            double = function(x.double(), weight.double(), bias.double())
        y.sum().backward()
        return [y, plain, nested, double, x.grad, weight.grad, bias.grad]

    for ours, theirs in zip(results(case.ours), results(case.theirs), strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 0.06 if theirs.dtype in (torch.bfloat16, torch.float16, torch.float32) else 1e-12
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_backward_keeps_its_precision_inside_autocast():
    x, weight, bias = CASES[0].tensors(torch.float32)
    y = CASES[0].ours(x, weight, bias)
    plain = torch.autograd.grad(y, (x, weight), torch.ones_like(y), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))
