"""A depthwise convolution and its 1x1 in one kernel, against the float64 reference of one after the other."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv import functional, reference
from fastconv.kernels.triton import configure, dw_pw
from fastconv.problem import Problem
from fastconv.testing import fuzz, guard, inputs, tolerances

from .tiles import small_tile

# The depthwise convolution, then what the problem of the 1x1 has besides its sizes: K, epilogue, slice.
CASES = (
    ("n2c19h7w9_k19r3s3_p1_g19_f32nhwc_bias_relu6", 21, "_bias_relu"),
    ("n1c33h9w8_k33r3s2_u2x1_p1x0_g33_f16nhwc_bias_relu", 17, "_bias_res_relu6"),
    ("n2c6h8w7_k12r5s3_u1x2_p2:1x0:2_d2x1_g6_bf16nhwc", 35, ""),
    ("n3c18h5w6_k18r3s3_u2_p1_g18_f32nchw_bias_relu6", 40, "_res_out3of50"),
    ("n2c17h6w5_k17r1s4_u3x2_p0x3_d1x2_g17_f16nchw_relu", 5, "_bias_out2of9"),
    ("n1c16h4w4_k16r7s7_p3_g16_bf16nhwc_bias_silu", 33, "_bias_gelu"),
    ("n2c5h5w4_k15r2s3_p1_g5_f32nhwc_leakyrelu0.1", 3, "_hardswish"),
    ("n1c9h6w5_k9r3s3_p1_g9_f32nhwc_sigmoid", 20, "_bias_leakyrelu0.25"),
)
RANDOM = 100
MAX_FLOPS, MAX_PIXELS = 3e5, 500  # of a random depthwise problem


def behind(first: Problem, k: int, ending: str) -> Problem:
    return Problem(f"n{first.n}c{first.k}h{first.h.out}w{first.w.out}_k{k}r1s1_{first.dtype}{first.layout}{ending}")


def exact(problem: Problem, x, w, bias=None, residual=None):
    return reference.epilogue(problem, reference.conv2d(problem, x=x, w=w), bias, residual)


def check(first: Problem, second: Problem, number: int, integer: bool) -> None:
    """Equality on integers, where the depthwise result is rounded once too; else the bound of both sums."""
    one, two = inputs.make(first, number, integer), inputs.make(second, number + 1, integer)
    out = inputs.guarded_output(second, number % 16)
    hidden = exact(first, one.first, one.second, one.bias)
    stored = hidden.to(one.first.dtype)
    expected = exact(second, stored if integer else hidden, two.second, two.bias, two.residual)
    operands = {"x": one.first, "w": one.second, "filter": two.second}
    operands |= {"depthwise_bias": one.bias, "bias": two.bias, "residual": two.residual}
    operands = {name: guard.guarded(t, number % 16) for name, t in operands.items() if t is not None}
    with configure.forced(small_tile(second, number)):
        for launch in dw_pw.plan(first, second, **operands, out=out.buffer)[1]:
            launch()
    case = f"{first} then {second}, {number=}, {integer=}"
    assert out.violation() is None, f"{case}: {out.violation()}"
    assert not out.tensor.isnan().any(), f"{case}: not written, or read outside"
    if integer and {first.activation, second.activation} <= {"none", "relu", "relu6"}:
        assert torch.equal(out.tensor, expected.to(out.tensor.dtype)), case
        return
    sizes = exact(first.replace(activation="none"), one.first.abs(), one.second.abs(), _size(one.bias))
    # An activation is at most 1.2 times as steep as its input, sigmoid(0) is a half.
    sizes = tolerances.LARGEST_SLOPE * sizes + 0.5
    sizes = exact(second.replace(activation="none"), sizes, two.second.abs(), _size(two.bias), _size(two.residual))
    terms = inputs.terms(first) + inputs.terms(second) + 8
    allowed = tolerances.allowed(second.dtype, terms, "direct", sizes, expected, roundings=2)
    assert ((out.tensor.double() - expected).abs() <= allowed).all(), case


def _size(t):
    return None if t is None else t.abs()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_one_after_the_other(number):
    text, k, ending = CASES[number]
    first = Problem(text)
    second = behind(first, k, ending)
    assert dw_pw.refuses(first, second) is None
    exact = {first.activation, second.activation} <= {"none", "relu", "relu6"}
    check(first, second, number, integer=exact and number % 4 != 0)


@pytest.mark.full
def test_random_problems():
    rng, found = random.Random("fused"), 0
    while found < RANDOM:
        first = fuzz.random_problem(rng, max_flops=MAX_FLOPS, pass_="fprop")
        if not first.is_depthwise or first.n * first.h.out * first.w.out > MAX_PIXELS or first.in_channels:
            continue
        first = first.replace(residual=False, out_channels=0, out_offset=0)
        second = behind(first, rng.choice(fuzz.CHANNELS), rng.choice(("", "_bias_relu", "_bias_res", "_silu")))
        if dw_pw.refuses(first, second) is None:
            check(first, second, found, integer=found % 4 != 3)
            found += 1


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_function_equals_torchs(format):
    def integers(*shape):
        return torch.randint(-2, 3, shape).float()

    x, d, w, b = integers(2, 6, 7, 5).contiguous(memory_format=format), integers(12, 1, 3, 2), integers(7, 12, 1, 1), 0
    first, second, residual = integers(12), integers(7), integers(2, 7, 4, 6)
    y = functional.depthwise_pointwise(
        x, d, w, first, second, stride=(2, 1), padding=1, activations=("relu6", "relu"), residual=residual
    )
    b = torch.nn.functional.conv2d(x, d, first, (2, 1), 1, groups=6).clamp(0, 6)
    expected = (torch.nn.functional.conv2d(b, w, second) + residual).relu()
    assert torch.equal(y, expected) and y.is_contiguous(memory_format=format)


def test_bad_input_is_named():
    x, d, w = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.ones(6, 4, 1, 1)
    call = functional.depthwise_pointwise
    for error, part, arguments, options in (
        (RuntimeError, r"depthwise has shape \(4, 2, 3, 3\)", (x, torch.ones(4, 2, 3, 3), w), {}),
        (RuntimeError, r"pointwise has shape \(6, 5, 1, 1\)", (x, d, torch.ones(6, 5, 1, 1)), {}),
        (RuntimeError, "pointwise is torch.float16", (x, d, w.half()), {}),
        (RuntimeError, "depthwise requires one", (x, d.clone().requires_grad_(), w), {}),
        (RuntimeError, r"pointwise_bias has shape \(5,\)", (x, d, w, None, torch.ones(5)), {}),
        (RuntimeError, r"residual has shape \(1, 6, 5, 5\)", (x, d, w), {"residual": torch.ones(1, 6, 5, 5)}),
        (ValueError, "'tanh' is none of them", (x, d, w), {"activations": ("relu", "tanh")}),
        (RuntimeError, "not torch.float64", (x.double(), d.double(), w.double()), {}),
    ):
        with pytest.raises(error, match=part):
            call(*arguments, **options)
