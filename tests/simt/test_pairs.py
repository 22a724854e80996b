"""Kernels of a depthwise convolution and the 1x1 behind it, in the emulator: tiles of several steps and blocks, every
geometry and layout, both matrix targets.
"""

from __future__ import annotations

import random

import pytest
import torch

import fastconv
from fastconv import functional
from fastconv._native import C
from fastconv.kernels import pairs
from fastconv.problem import Problem
from fastconv.testing import emulator
from fastconv.testing.check_pair import behind, check_pair, is_exact, random_pairs

# The depthwise convolution, then what the problem of the 1x1 has besides its sizes: K, epilogue, slice.
CASES = (
    # Vectors: 3 wide with strides 1 and 2, other windows; steps that end inside a chunk of channels; K in two tiles.
    ("n2c72h9w11_k72r3s3_p1_g72_f16nhwc_bias_relu6", 72, "_bias_relu"),
    ("n1c136h9w8_k136r3s3_u2_p1_g136_bf16nhwc_bias_relu", 136, "_bias_res_relu6"),
    ("n2c40h8w7_k40r5s3_u1x2_p2:1x0:2_d2x1_g40_bf16nhwc", 40, "_out16of104"),
    ("n1c36h7w6_k36r5s5_p2_g36_tf32nhwc_bias_relu6", 72, "_res"),
    ("n2c36h9w8_k36r3s3_u2x1_p1_g36_f32nhwc_bias_relu", 72, "_bias_relu"),
    # Elements: channels and addresses off 16 bytes, NCHW, several filters a channel.
    ("n2c19h7w9_k19r3s3_p1_g19_f32nhwc_bias_relu6", 21, "_bias_relu"),
    ("n3c18h5w6_k18r3s3_u2_p1_g18_f32nchw_bias_relu6", 70, "_res_out3of80"),
    ("n2c17h6w5_k17r1s4_u3x2_p0x3_d1x2_g17_f16nchw_relu", 5, "_bias_out2of9"),
    ("n1c8h6w7_k24r2s3_p1_g8_bf16nhwc", 33, "_bias_relu"),
    ("n1c9h6w5_k9r3s3_p1_g9_tf32nhwc", 20, "_bias"),
    # Activations that are more than bounds.
    ("n1c16h4w4_k16r7s7_p3_g16_bf16nhwc_bias_silu", 33, "_bias_gelu"),
    ("n2c5h5w4_k15r2s3_p1_g5_f32nhwc_leakyrelu0.1", 3, "_hardswish"),
)
RANDOM, ALL_RANDOM = 6, 200
MATRIX = {"f16", "bf16", "tf32"}


def taking(first: Problem, second: Problem):
    """The one kernel that takes both, as every pair in float has."""
    (found,) = [pair for pair in emulator.pairs() if pair.refuses(first, second) is None]
    assert found.name.endswith("_sm80" if first.dtype in MATRIX else "_simt")
    return found


@pytest.mark.parametrize(("text", "k", "ending"), CASES)
def test_equals_one_after_the_other_in_three_orders(text, k, ending):
    first = Problem(text)
    second = behind(first, k, ending)
    for order in range(3):  # aligned, then not
        integer = is_exact(first, second) and order != 1
        check_pair(taking(first, second).run, first, second, (0, 16, 3)[order], integer, threads=order)


def check_random(count: int) -> None:
    found = 0
    for first, second in random_pairs(random.Random("pairs")):
        if first.dtype == "f64":
            continue
        for order in range(3):
            number = 16 * found if found % 2 else found
            check_pair(taking(first, second).run, first, second, number, found % 4 != 3, threads=3 * found + order)
        found += 1
        if found == count:
            return


def test_random_pairs():
    check_random(RANDOM)


@pytest.mark.full
def test_many_random_pairs():
    check_random(ALL_RANDOM)


def test_a_nan_stays_one_and_alone():
    first = Problem("n1c8h6w6_k8r3s3_p1_g8_f32nhwc_relu6")
    second = behind(first, 8, "_relu")
    x = torch.ones(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    x[0, 2, 0, 0] = torch.nan
    out = torch.zeros(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    taking(first, second).run(first, second, out=out, x=x, w=torch.ones(8, 1, 3, 3), filter=torch.ones(8, 8, 1, 1))
    assert out[0, :, :2, :2].isnan().all() and int(out.isnan().sum()) == 8 * 4


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ("n1c8h5w5_k8r3s3_p1_g4_f32nhwc", "n1c8h5w5_k4r1s1_f32nhwc", "C=8 are in 4 groups"),
        ("n1c8h5w5_k8r3s3_p1_g8_f32nhwc", "n1c8h5w5_k4r3s3_p1_f32nhwc", "is 1x1 of stride 1"),
        ("n1c8h5w5_k8r3s3_p1_g8_f32nhwc", "n1c8h5w5_k4r1s1_u2_f32nhwc", "is 1x1 of stride 1"),
        ("n1c8h5w5_k8r3s3_g8_f32nhwc", "n1c8h5w5_k4r1s1_f32nhwc", "does not read what the first makes"),
        ("n1c8h5w5_k8r3s3_p1_g8_f32nhwc_res", "n1c8h5w5_k4r1s1_f32nhwc", "stored nowhere"),
        ("n1c8h5w5_k8r3s3_p1_g8_f32nhwc_dgrad", "n1c8h5w5_k4r1s1_f32nhwc", "two convolutions forwards"),
        ("n1c8h5w5_k8r3s3_p1_g8_f64nhwc", "n1c8h5w5_k4r1s1_f64nhwc", "computes in float"),
        ("n1c8h40w40_k8r31s31_p15_g8_f16nhwc", "n1c8h40w40_k4r1s1_f16nhwc", "R·S=961 bring to"),
    ],
)
def test_refusals_are_sentences(first, second, part):
    first, second = Problem(first), Problem(second)
    assert all(pair.refuses(first, second) for pair in emulator.pairs())
    assert any(part in pair.refuses(first, second) for pair in emulator.pairs())


def test_the_function_takes_the_first_that_can(monkeypatch):
    """On a GPU; here the emulator stands in for it."""
    monkeypatch.setattr(pairs, "pairs", emulator.pairs)
    first = Problem("n1c8h5w5_k8r3s3_p1_g8_f32nhwc")
    second = behind(first, 4)
    assert pairs.choose(first, second, "cpu").name == "dwconv2d/fprop_gemm1x1_simt"
    half = [problem.replace(dtype="f16") for problem in (first, second)]
    with fastconv.config(kernel="*_simt"):
        assert pairs.choose(*half, "cpu").name == "dwconv2d/fprop_gemm1x1_sm80"  # no other takes it
    with fastconv.config(kernel="*_simt", strict=True), pytest.raises(RuntimeError, match="does not name it"):
        pairs.choose(*half, "cpu")
    with pytest.raises(RuntimeError, match=r"gemm1x1_sm80: .*not on cuda.*gemm1x1_simt: "):
        pairs.choose(first, second, "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="There is a GPU here.")
def test_without_a_gpu_the_function_says_so():
    x, d, w = torch.ones(1, 4, 5, 5), torch.ones(4, 1, 3, 3), torch.ones(6, 4, 1, 1)
    with pytest.raises(RuntimeError, match="runs on a GPU, but input is on cpu"):
        functional.depthwise_pointwise(x, d, w)
    problems = Problem("n1c4h5w5_k4r3s3_g4_f32nhwc"), Problem("n1c4h3w3_k6r1s1_f32nhwc")
    with pytest.raises(RuntimeError):
        C.gpu_pair_run(0, *problems, x=x, w=d, filter=w)
