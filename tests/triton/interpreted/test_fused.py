"""A depthwise convolution and its 1x1 in one kernel, against the float64 reference of one after the other."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from fastconv import functional
from fastconv.kernels.triton import configure, dw_pw
from fastconv.problem import Problem
from fastconv.testing.check_pair import behind, check_pair, is_exact, random_pairs

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


def run(first: Problem, second: Problem, number: int, **operands) -> None:
    with configure.forced(small_tile(second, number)):
        for launch in dw_pw.plan(first, second, **operands)[1]:
            launch()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equals_one_after_the_other(number):
    text, k, ending = CASES[number]
    first = Problem(text)
    second = behind(first, k, ending)
    assert dw_pw.refuses(first, second) is None
    integer = is_exact(first, second) and number % 4 != 0
    check_pair(partial(run, number=number), first, second, number, integer)


@pytest.mark.full
def test_random_problems():
    found = 0
    for first, second in random_pairs(random.Random("fused")):
        if dw_pw.refuses(first, second) is None:
            check_pair(partial(run, number=found), first, second, found, integer=found % 4 != 3)
            found += 1
        if found == RANDOM:
            return


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
