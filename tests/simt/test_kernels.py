"""Every GPU kernel, in the emulator, on every problem of the edge corpora that it accepts: guarded and poisoned buffers
and workspace, seeded orders of threads, equality on integers and the bound on real values.
"""

from __future__ import annotations

import math

import pytest
import torch

from fastconv import reference_map
from fastconv.problem import Problem
from fastconv.testing import emulator, gpu_cases, inputs
from fastconv.testing.check_pool import KINDS, check_pool
from fastconv.testing.gpu_cases import LAYOUTS, check
from fastconv.testing.inputs import DTYPES

CONVOLUTIONS = [k for k in emulator.rows() if k.op == "conv2d"]
MAPS = [k for k in emulator.rows() if k.op in reference_map.OPS]
POOLS = [k for k in emulator.rows() if k.op not in ("conv2d", *reference_map.OPS)]
SOME = 3  # a brief run takes every third problem, of each dtype and layout another third
RANDOM_PROBLEMS, ALL_RANDOM_PROBLEMS = 12, 200
# Tiles that a corpus of small problems does not reach: 128 x 128, whole and with edges.
LARGE = (
    "n2c24h33w35_k130r2s3_p1x0_bf16nhwc_bias_res_relu",
    "n2c100h33w35_k24r2s3_p1x0_f16nhwc_dgrad",
    "n2c100h34w35_k12r3s2_u2x1_p1_tf32nhwc_dgrad",
)

WEIGHT_GRADIENTS = (
    "n3c24h19w21_k72r3s2_p1x0_bf16nhwc_wgrad",
    "n3c8h19w21_k136r2s3_u1x2_d2x1_p1_f16nhwc_wgrad",
    "n3c24h19w21_k72r2s3_p0x1_tf32nhwc_wgrad",
    "n2c48h19w21_k144r2s1_g2_f32nhwc_wgrad",
)


def some(problems, dtype: str):
    """Every third problem, numbered; which third depends on the dtype."""
    first = list(DTYPES).index(dtype) % SOME
    return ((i, problem) for i, problem in enumerate(problems) if i % SOME == first)


@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16", "bf16"])
@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda k: k.name)
def test_convolutions_agree_with_the_oracle(kernel, dtype):
    for i, problem in some(gpu_cases.problems(kernel, dtype), dtype):
        check(kernel, problem, i // SOME, integer=i % 2 == 0)


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16", "bf16"])
@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda k: k.name)
def test_all_convolutions_agree_with_the_oracle(kernel, dtype):
    for i, problem in enumerate(gpu_cases.problems(kernel, dtype)):
        check(kernel, problem, i, integer=True)
        check(kernel, problem, i + 1, integer=False)


@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda k: k.name)
def test_random_convolutions_in_three_orders(kernel):
    for i, problem in enumerate(gpu_cases.random_convolutions(kernel, RANDOM_PROBLEMS)):
        for order in range(3):
            check(kernel, problem, 3 * i + order, integer=True)


@pytest.mark.full
@pytest.mark.parametrize("kernel", CONVOLUTIONS, ids=lambda k: k.name)
def test_many_random_convolutions_in_three_orders(kernel):
    for i, problem in enumerate(gpu_cases.random_convolutions(kernel, ALL_RANDOM_PROBLEMS)):
        for order in range(3):
            check(kernel, problem, 3 * i + order, integer=True)


@pytest.mark.parametrize("gap", [0, 4, 8])
def test_filters_that_are_slices_of_channels_last_ones(gap):
    """Rows whose distance is no multiple of 16 bytes cannot be read in place; the bits are the same either way."""
    problem = Problem("n1c16h5w6_k24r1s1_bf16nhwc")
    kernel = emulator.kernel("conv2d/fprop_igemm_sm80")
    operands = inputs.make(problem, 3, integer=False)
    wide = torch.full((24, 16 + gap, 1, 1), math.nan, dtype=torch.bfloat16).contiguous(
        memory_format=torch.channels_last
    )
    wide[:, :16] = operands.second
    results = []
    for filter in (operands.second.contiguous(), wide[:, :16]):
        out = torch.zeros(inputs.shapes(problem)["y"], dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        results.append(kernel.run(problem, out=out, x=operands.first, w=filter))
    assert torch.equal(*results)


@pytest.mark.parametrize("text", LARGE)
def test_large_tiles(text):
    """Both ways of loading: aligned, and off alignment."""
    problem = Problem(text)
    kernel = emulator.kernel(f"conv2d/{problem.pass_}_igemm_sm80")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=True)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_rows_slide(window, stride, dtype):
    """Each compiled width and stride, and gradients, whose taps run the other way; channels past a block's 64."""
    for pass_, row_stride in (("fprop", stride), ("dgrad", 1), ("dgrad", stride)):
        geometry = f"r3s{window}_u2x{row_stride}_p1x{window // 2}"
        problem = Problem(f"n2c72h6w11_k72{geometry}_g72_{dtype}nhwc").replace(pass_=pass_)
        check(emulator.kernel(f"dwconv2d/{pass_}_depthwise_simt"), problem, 0, integer=True)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("window", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_weight_gradients_slide(window, stride, dtype):
    """Each compiled width and stride, in several parts; aligned and not; channels past a block's 64."""
    problem = Problem(f"n7c72h19w25_k72r2s{window}_u2x{stride}_p1x{window // 2}_g72_{dtype}nhwc_wgrad")
    kernel = emulator.kernel("dwconv2d/wgrad_depthwise_simt")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=False)


@pytest.mark.parametrize("text", WEIGHT_GRADIENTS)
def test_weight_gradients_in_many_parts(text):
    """Several tiles of filters and of columns, aligned and not; the last part is shorter than the others."""
    problem = Problem(text)
    kernel = emulator.kernel(f"conv2d/wgrad_igemm_{'simt' if problem.dtype == 'f32' else 'sm80'}")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conv2d/wgrad_igemm_sm80", "n3c16h19w21_k24r3s2_p1x0_bf16nhwc_wgrad"),
        ("conv2d/wgrad_stem_sm80", "n9c3h19w21_k24r3s2_p1x0_bf16nhwc_wgrad"),
        ("conv2d/wgrad_igemm_simt", "n3c5h19w21_k6r3s2_p1x0_f32nchw_wgrad"),
        ("gconv2d/wgrad_grouped_sm80", "n9c12h19w21_k16r3s2_p1x0_g4_bf16nhwc_wgrad"),
        ("dwconv2d/wgrad_depthwise_simt", "n9c16h19w21_k16r3s3_p1_g16_f32nhwc_wgrad"),
    ],
)
def test_weight_gradients_have_the_same_bits_in_every_order(name, text):
    problem, kernel = Problem(text), emulator.kernel(name)
    operands = inputs.make(problem, 3, integer=False)
    results = []
    for order in range(3):
        out = torch.zeros(inputs.shapes(problem)["w"], dtype=operands.first.dtype)
        results.append(kernel.run(problem, out=out, threads=order, **operands.named(problem)))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depthwise_weight_gradients_end_with_the_outputs(layout):
    """Three outputs reach seven of eight columns; what is infinite in the eighth reaches no gradient."""
    problem = Problem(f"n2c8h6w8_k8r1s3_u1x2_g8_f32{layout}_wgrad")
    operands = inputs.make(problem, 3, integer=True)
    tensors = operands.named(problem)
    tensors["x"][..., 7] = math.inf
    out = torch.zeros(inputs.shapes(problem)["w"])
    assert emulator.kernel("dwconv2d/wgrad_depthwise_simt").run(problem, out=out, **tensors).isfinite().all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kernel", POOLS, ids=lambda k: k.name)
def test_pools_agree_with_the_oracle(kernel, dtype):
    for number, problem in enumerate(gpu_cases.problems(kernel, dtype)):
        i = number + number // 2  # layouts take turns, and alignments by another rhythm
        for kind in KINDS:
            if kind == "special" and (problem.pass_ == "dgrad" or "avg" in problem.op):
                continue
            try:
                check_pool(kernel, problem, kind=kind, seed=i, offset=(0, i % 16)[i % 2], threads=i)
            except (AssertionError, RuntimeError) as error:
                raise AssertionError(f"{kernel.name} on {problem}, i={i}, {kind}: {error}") from None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("text", ["n2c24h5w7", "n3c65h16w13", "n1c8h12w8"])
def test_maxima_of_whole_maps(text, dtype, layout):
    """Fewer pixels than threads, and more than a thread's loads at once; every index; infinities and several NaN."""
    height, width = text.split("h")[1].split("w")
    for op, window in (("maxpool2d", f"r{height}s{width}"), ("adaptivemax2d", "o1x1")):
        kernel = emulator.kernel(f"{op}/fprop_global_simt")
        for index in gpu_cases.INDICES[op]:
            problem = Problem(f"{op}_{text}_{window}_{dtype}{layout}").replace(index=index)
            for i, kind in enumerate(KINDS):
                check_pool(kernel, problem, kind=kind, seed=i, offset=(0, 0, 5)[i], threads=i)
                check_pool(kernel, problem, kind=kind, seed=i + 3, offset=(5, 0, 0)[i], threads=i)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [-3.0, -math.inf])
def test_the_first_of_equal_negative_maxima(value, layout):
    """Threads that have no pixel, or less than others, find no maximum of 0."""
    for size in ("h3w4", "h5w7"):
        problem = Problem(f"adaptivemax2d_n2c8{size}_o1x1_f32{layout}").replace(index="i64")
        x = torch.full(inputs.shapes(problem)["x"], value).contiguous(memory_format=inputs.memory_format(problem))
        y, index = torch.zeros(2, 8, 1, 1), torch.full((2, 8, 1, 1), -1)
        emulator.kernel("adaptivemax2d/fprop_global_simt").run(problem, out=y, x=x, index=index)
        assert (y == value).all() and (index == 0).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kernel", MAPS, ids=lambda k: k.name)
def test_maps_agree_with_the_oracle(kernel, dtype):
    for i, problem in enumerate(gpu_cases.problems(kernel, dtype)):
        check(kernel, problem, i + i // 2)


@pytest.mark.parametrize("kernel", emulator.rows(), ids=lambda k: k.name)
def test_every_kernel_accepts_a_problem(kernel):
    assert any(True for dtype in ("f32", "tf32", "bf16") for _ in gpu_cases.problems(kernel, dtype))


def test_refusals_are_sentences():
    for name, text, part in (
        ("conv2d/fprop_igemm_sm80", "n1c8h5w6_k8r1s1_f32nhwc", "drop 13 of 23 mantissa bits"),
        ("conv2d/fprop_igemm_simt", "n1c8h5w6_k8r1s1_bf16nhwc", "tensor cores are for bf16"),
        ("conv2d/fprop_igemm_simt", "n1c8h5w6_k8r1s1_f64nhwc", "the problem is in f64"),
        ("conv2d/fprop_igemm_sm80", "n1c8h5w6_k8r1s1_f16nhwc_packed", "not packed ones"),
        ("conv2d/fprop_igemm_sm80", "n1c8h5w6_k8r1s1_f16nhwc_in3of60", "8 of a buffer's 60 channels"),
        ("conv2d/dgrad_igemm_sm80", "n1c8h25w26_k8r9s9_u9_f16nhwc_dgrad", "the stride is 9"),
        ("conv2d/fprop_igemm_sm80", "n65536c1h200w201_k1r1s1_f16nhwc", "2634547200"),
        ("conv2d/fprop_im2col_sm80", "n1c8h5w6_k8r3s3_f32nhwc", "drop 13 of 23 mantissa bits"),
        ("conv2d/fprop_im2col_simt", "n1c8h5w6_k8r3s3_tf32nhwc", "tensor cores are for tf32"),
        ("conv2d/fprop_im2col_sm80", "n65536c1h200w201_k1r1s1_f16nhwc", "2634547200"),
        ("conv2d/fprop_im2col_sm80", "n1c512h512w512_k8r3s3_p1_f16nhwc", "262144 pixels with 9216 each"),
        ("conv2d/fprop_stem_sm80", "n1c3h5w6_k8r1s1_f32nhwc", "drop 13 of 23 mantissa bits"),
        ("conv2d/fprop_stem_simt", "n1c5h5w6_k8r1s1_f32nhwc", "not C=5 in 1"),
        ("conv2d/fprop_stem_sm80", "n1c3h5w6_k8r1s2_d1x2_f16nhwc", "the dilation is 2"),
        ("conv2d/fprop_stem_sm80", "n1c4h50w60_k8r29s31_f16nhwc", "in shared memory, which take"),
        ("conv2d/wgrad_stem_sm80", "n1c3h5w6_k8r1s1_f32nhwc_wgrad", "drop 13 of 23 mantissa bits"),
        ("conv2d/wgrad_stem_simt", "n1c5h5w6_k8r1s1_f32nhwc_wgrad", "not C=5 in 1"),
        ("conv2d/wgrad_stem_sm80", "n1c4h150w160_k8r129s131_f16nhwc_wgrad", "in shared memory, which take"),
        ("gconv2d/fprop_grouped_sm80", "n1c8h5w6_k8r1s1_g2_f32nhwc", "drop 13 of 23 mantissa bits"),
        ("gconv2d/fprop_grouped_simt", "n1c32h5w6_k8r1s1_g2_f32nhwc", "not C=32 to K=8 in 2"),
        ("gconv2d/dgrad_grouped_sm80", "n1c8h25w26_k8r9s9_u9_g2_f16nhwc_dgrad", "the stride is 9"),
        ("gconv2d/fprop_grouped_sm80", "n1c8h50w60_k8r9s9_u8_g2_f16nhwc", "shared memory, which take"),
        ("gconv2d/wgrad_grouped_sm80", "n1c8h5w6_k8r1s1_g2_f32nhwc_wgrad", "drop 13 of 23 mantissa bits"),
        ("gconv2d/wgrad_grouped_simt", "n1c66h5w6_k8r1s1_g2_f32nhwc_wgrad", "not C=66 to K=8 in 2"),
        ("gconv2d/wgrad_grouped_sm80", "n1c32h150w160_k32r29s31_g2_f16nhwc_wgrad", "in shared memory, which take"),
        ("dwconv2d/fprop_depthwise_simt", "n1c8h5w6_k8r1s1_f16nhwc", "not C=8 in 1 groups"),
        ("dwconv2d/fprop_depthwise_simt", "n1c8h5w6_k16r1s1_g8_f16nhwc", "but the problem has 2"),
        ("dwconv2d/fprop_depthwise_simt", "n1c8h25w26_k8r14s15_g8_f16nhwc", "R·S=210 take 53760 bytes"),
        ("conv2d/wgrad_igemm_sm80", "n1c8h5w6_k8r1s1_f32nhwc_wgrad", "drop 13 of 23 mantissa bits"),
        ("conv2d/wgrad_igemm_simt", "n65536c1h200w201_k1r1s1_f32nhwc_wgrad", "2634547200"),
        ("dwconv2d/wgrad_depthwise_simt", "n1c8h5w6_k16r1s1_g8_f16nhwc_wgrad", "but the problem has 2"),
        ("maxpool2d/dgrad_window_simt", "maxpool2d_n1c1h9w9_r2s2_f32nhwc_dgrad", "needs an index"),
        ("avgpool2d/fprop_global_simt", "avgpool2d_n1c1h9w9_r9s8_f32nhwc", "windows of 8 over 9"),
        ("adaptiveavg2d/fprop_global_simt", "adaptiveavg2d_n1c1h9w8_o1x2_f32nhwc", "2 of them"),
        ("maxpool2d/fprop_global_simt", "maxpool2d_n1c1h9w9_r9s8_f32nhwc", "windows of 8 over 9"),
        ("maxpool2d/fprop_global_simt", "maxpool2d_n1c1h16w17_r16s17_f32nhwc_indexu8", "R·S=272"),
        ("adaptivemax2d/fprop_global_simt", "adaptivemax2d_n70000c1h9w8_o1x1_f32nhwc", "there are 70000"),
        ("reorder2d/fprop_transpose_simt", "reorder2d_n70000c8h9w8_f32nhwc", "there are 70000"),
        ("maxpool2d/fprop_window_simt", "maxpool2d_n1c1h29w29_r16s17_f32nhwc_indexu8", "R·S=272"),
    ):
        assert part in emulator.kernel(name).refuses(Problem(text))
