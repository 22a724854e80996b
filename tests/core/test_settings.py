"""config() steers dispatch, at once and for a block, and refuses what it does not know."""

from __future__ import annotations

import pytest
import torch

import fastconv
from fastconv import dispatch, functional, registry, settings
from fastconv.problem import Problem
from fastconv.profiling.trace import trace

PROBLEM = Problem("n1c3h5w6_k4r3s2_f32nchw")
X, W = torch.randn(1, 3, 5, 6), torch.randn(4, 3, 3, 2)


def kernel_of_a_call() -> str:
    with trace() as calls:
        functional.conv2d(X, W)
    return calls[0].kernel


@pytest.mark.parametrize(
    ("switches", "error"),
    [
        ({"kernal": "*"}, TypeError),
        ({"strict": 1}, TypeError),
        ({"kernel": 3}, TypeError),
        ({"kernel": "conv2d/no_such_kernel"}, ValueError),
        ({"kernel": "-no_such*"}, ValueError),
        ({"kernel": "a b; c"}, ValueError),
        ({"kernel": ""}, ValueError),
        ({"isa": "avx1024"}, ValueError),
    ],
    ids=str,
)
def test_unknown_switches_and_values_raise_and_change_nothing(switches, error):
    before = settings.current()
    with pytest.raises(error, match="config"):
        fastconv.config(**switches)
    assert settings.current() == before


OF_CPU = [k for k in registry.kernels() if k.op == "conv2d" and k.pass_ == "fprop" and "cpu" in k.devices]


@pytest.mark.parametrize("row", OF_CPU, ids=lambda row: row.name)
def test_a_kernel_can_be_forced_and_forbidden(row):
    accepts = row.refuses(PROBLEM) is None
    with fastconv.config(kernel=row.name):
        assert (kernel_of_a_call() == row.name) == accepts
    with fastconv.config(kernel=f"-{row.name}"):
        assert kernel_of_a_call() != row.name


def test_a_block_ends_where_it_began():
    before, kernel = settings.current(), kernel_of_a_call()
    with fastconv.config(kernel="*_reference_*"):
        assert kernel_of_a_call().startswith("conv2d/fprop_reference")
        with fastconv.config(kernel="*_aten"):
            assert kernel_of_a_call() == "conv2d/fprop_aten"
        assert kernel_of_a_call().startswith("conv2d/fprop_reference")
    assert settings.current() == before and kernel_of_a_call() == kernel


def test_strict_raises_where_the_patterns_leave_nothing():
    with fastconv.config(kernel="conv2d/dgrad*", strict=True), pytest.raises(RuntimeError, match="No kernel accepts"):
        functional.conv2d(X, W)
    with fastconv.config(kernel="conv2d/dgrad*"):
        assert kernel_of_a_call() == dispatch.plan(PROBLEM).name


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_isa_limits_what_is_chosen(isa):
    widest = settings.ISAS.index(isa)
    with fastconv.config(isa=isa, kernel="-*_aten"):
        for candidate in dispatch.candidates(PROBLEM):
            name = candidate.kernel.name.rsplit("_", 1)[1]
            if candidate.reason is None and name in settings.ISAS:
                assert settings.ISAS.index(name) <= widest


def test_every_refusal_is_a_sentence():
    for dtype in ("f64", "f32", "f16", "bf16", "other"):
        for candidate in dispatch.candidates(PROBLEM.replace(dtype=dtype)):
            assert candidate.reason is None or candidate.reason.endswith("."), candidate


WINOGRAD = Problem("n1c64h28w27_k64r3s3_p1_f32nhwc")


def test_the_cheapest_estimate_of_an_instruction_set_is_chosen():
    with fastconv.config(kernel="-*_aten"):
        accepting = [c for c in dispatch.candidates(WINOGRAD) if c.reason is None]
        first = accepting[0].kernel
        rivals = {c.kernel.name: c.seconds for c in accepting if c.kernel.target == first.target}
        assert None not in rivals.values() and len(rivals) > 1
        chosen = dispatch.plan(WINOGRAD)
    assert chosen.name == min(rivals, key=rivals.get) != first.name
    assert chosen.algorithm == "winograd4"
    assert f"estimated {rivals[chosen.name] * 1e3:.3g} ms" in str(fastconv.explain(WINOGRAD))


def test_order_decides_where_the_first_kernel_states_no_cost():
    few_products = Problem("n1c4h1w1_k4r1s1_f32nhwc")
    with fastconv.config(kernel="-*_aten"):
        accepting = [c for c in dispatch.candidates(few_products) if c.reason is None]
        assert accepting[0].seconds is None and any(c.seconds is not None for c in accepting)
        assert dispatch.plan(few_products) is accepting[0].kernel


def test_winograd_is_left_out_when_it_is_not_wanted():
    for switches in ({"winograd": False}, {"strict": True}):
        with fastconv.config(**switches):
            assert not dispatch.plan(WINOGRAD).spreads_nan
    with fastconv.config(strict=True, kernel="conv2d/fprop_winograd2*"):
        assert dispatch.plan(WINOGRAD).algorithm == "winograd2"
    with fastconv.config(winograd=False, kernel="conv2d/fprop_winograd2*"):
        assert not dispatch.plan(WINOGRAD).spreads_nan
