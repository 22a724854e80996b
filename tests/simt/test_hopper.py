"""The sm_90 kernels in the emulator, on problems of several tiles: every block takes some, both warpgroups work, and
the stages come round. The problems of test_kernels.py, which all kernels get, are smaller than a tile.
"""

from __future__ import annotations

import random

import pytest
import torch

from fastconv.problem import Problem
from fastconv.testing import emulator, fuzz, inputs
from fastconv.testing.check import check_conv

PROBLEMS = (
    # 1x1 by tiled copies, one and several steps of depth; channels that end inside a step.
    "n2c200h19w18_k136r1s1_bf16nhwc_bias_relu",
    "n3c64h19w18_k64r1s1_f16nhwc_dgrad",
    "n2c40h19w18_k72r1s1_tf32nhwc_bias_res_silu",
    "n3c64h19w18_k24r1s1_f16nhwc_relu",
    # Windows: padding, strides, dilation, into a slice of channels, groups.
    "n2c72h19w18_k136r3s2_u2x1_p1x0_bf16nhwc_bias_res_relu",
    "n3c64h17w19_k48r3s5_p1x2_f16nhwc_out16of300",
    "n2c36h15w18_k40r2s3_d3x2_p1x2_tf32nhwc",
    "n2c128h17w18_k192r3s3_p1_g2_f16nhwc",
    "n5c8h33w35_k24r7s7_u2_p3_bf16nhwc",
    # Boxes stored by the copy engine: of 128 and 64 bytes, of floats, into a slice, in groups; gradients.
    "n2c64h19w18_k136r3s3_p1_tf32nhwc_bias_relu6",
    "n2c64h13w18_k96r1s1_bf16nhwc_bias_out16of144",
    "n2c72h19w18_k24r3s3_p1_f16nhwc_relu",
    "n1c128h17w15_k144r3s3_p1_g2_bf16nhwc_bias_relu",
    "n2c136h9w17_k64r3s3_p1_f16nhwc_dgrad",
    # 33 to 64 written channels: pixels as columns.
    "n3c24h19w18_k64r3s3_p1_bf16nhwc_bias_res_relu",
    "n2c48h17w18_k64r3s3_u2_p1_bf16nhwc_dgrad_res",
    "n2c128h17w18_k128r3s3_u2x1_p1_g2_f16nhwc_bias_silu",
    # Strided gradients by phases, some of them without a tap; asymmetric padding.
    "n2c72h19w18_k136r3s2_u2x1_p1x0_bf16nhwc_dgrad_res",
    "n3c64h21w18_k40r1s1_u2x3_f16nhwc_dgrad",
    "n2c130h20w18_k24r3s3_u3x2_d2x1_p2x1_tf32nhwc_dgrad",
    "n2c128h17w18_k128r3s3_p0:1x1:0_g2_bf16nhwc_dgrad",
    # Weight gradients in several parts, and of groups whose boxes reach into their neighbours.
    "n3c24h19w21_k72r3s2_p1x0_bf16nhwc_wgrad",
    "n2c200h19w18_k136r1s1_f16nhwc_wgrad",
    "n5c64h19w18_k200r2s3_d2x1_p1_f16nhwc_wgrad",
    "n2c48h17w18_k80r3s3_u2x1_p1_g2_bf16nhwc_wgrad",
)
RANDOM_PROBLEMS, ALL_RANDOM_PROBLEMS = 4, 200
RANDOM_FLOPS, LARGEST_BYTES = 2e5, 2e6


def kernel_of(problem: Problem):
    return emulator.kernel(f"conv2d/{problem.pass_}_igemm_sm90a")


@pytest.mark.parametrize("text", PROBLEMS)
def test_several_tiles_in_three_orders(text):
    problem = Problem(text)
    for order in range(3):
        check_conv(
            kernel_of(problem),
            problem,
            seed=order,
            integer=order != 1,
            offset=0,
            weight_channels_last=order != 2,
            weight_gap=(0, 0, 1)[order],
            threads=order,
        )


@pytest.mark.parametrize("text", ["n2c72h9w8_k40r3s2_p1x0_bf16nhwc", "n2c72h9w8_k40r3s2_p1x0_f16nhwc_wgrad"])
def test_off_alignment_the_sm80_kernel_computes(text):
    problem = Problem(text)
    check_conv(kernel_of(problem), problem, seed=1, integer=True, offset=3, threads=1)


def random_problem(rng: random.Random, pass_: str) -> Problem:
    """A random geometry with channels that the copy engine takes, and one the kernel accepts."""
    while True:
        base = fuzz.random_problem(rng, max_flops=RANDOM_FLOPS, pass_=pass_)
        groups = rng.choice((1, 1, 1, 2))
        step = 64 if groups > 1 and pass_ != "wgrad" else 8
        c, k = (groups * step * rng.randint(1, 3 if step == 64 else 20) for _ in "ck")
        dtype = rng.choice(("f16", "bf16") if pass_ == "wgrad" else ("f16", "bf16", "tf32"))
        plain = {"out_channels": 0, "out_offset": 0}
        problem = base.replace(c=c, k=k, groups=groups, dtype=dtype, layout="nhwc", **plain)
        small = problem.bytes < LARGEST_BYTES
        if small and kernel_of(problem).refuses(problem) is None:
            return problem


def check_random(pass_: str, count: int) -> None:
    rng = random.Random(pass_)
    for i in range(count):
        problem = random_problem(rng, pass_)
        try:
            for order in range(3):
                check_conv(kernel_of(problem), problem, seed=i, integer=True, offset=0, threads=3 * i + order)
        except (AssertionError, RuntimeError) as error:
            raise AssertionError(f"{problem}, i={i}: {error}") from None


@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_random_problems(pass_):
    check_random(pass_, RANDOM_PROBLEMS)


@pytest.mark.full
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_many_random_problems(pass_):
    check_random(pass_, ALL_RANDOM_PROBLEMS)


def test_weight_gradients_have_the_same_bits_in_every_order():
    problem = Problem("n3c24h19w21_k72r3s2_p1x0_bf16nhwc_wgrad")
    operands = inputs.make(problem, 3, integer=False)
    results = []
    for order in range(3):
        out = torch.zeros(inputs.shapes(problem)["w"], dtype=operands.first.dtype)
        results.append(kernel_of(problem).run(problem, out=out, threads=order, **operands.named(problem)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("n1c8h5w6_k8r1s1_f32nhwc", "drop 13 of 23 mantissa bits"),
        ("n1c8h5w6_k8r1s1_f16nchw", "channels_last"),
        ("n1c12h5w6_k8r1s1_f16nhwc", "a group has 12 of 2 bytes"),
        ("n1c6h5w6_k8r1s1_tf32nhwc", "a group has 6 of 4 bytes"),
        ("n1c48h5w6_k8r1s1_g2_f16nhwc", "into the next group: each has 24"),
        ("n1c8h300w6_k8r3s1_d128x1_f16nhwc", "reaches 256"),
        ("n1c8h50w6_k8r3s1_u9x1_f16nhwc", "of axis h is 9"),
        ("n1c8h400w6_k8r3s1_p150x0_f16nhwc", "a corner of axis h is -150"),
        ("n1c8h50w60_k8r3s3_u5x4_f16nhwc_dgrad", "the strides make 20"),
        ("n1c8h5w6_k8r1s1_tf32nhwc_wgrad", "the problem is in tf32"),
        ("n1c8h5w6_k12r1s1_f16nhwc_wgrad", "a group has 12 of 2 bytes"),
        ("n65536c8h200w201_k8r1s1_f16nhwc", "2634547200"),
    ],
)
def test_refusals_are_sentences(text, part):
    problem = Problem(text)
    assert part in kernel_of(problem).refuses(problem)
