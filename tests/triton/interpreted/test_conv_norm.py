"""Convolutions beside a training batch norm: its statistics from the epilogue, its apply on the way into the next."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure, moments, prologue
from fastconv.problem import Problem
from fastconv.testing import fuzz, guard, inputs

from .tiles import small_tile

EPS = 1e-3
SLOPE = 0.1
ACTIVATIONS = ("relu", "none", "silu", "relu6", "leaky_relu", "hardswish", "hardsigmoid", "sigmoid", "gelu", "gelutanh")
RANDOM = 100
MAX_FLOPS, MAX_PIXELS = 3e5, 500
MEASURED = (
    ("conv_fprop", "n2c5h7w9_k19r3s2_u2x1_p1_f32nhwc"),
    ("conv_fprop", "n3c12h6w5_k34r2s3_p1_g2_f16nhwc_bias_res_relu"),
    ("conv_fprop", "n1c3h9w8_k17r4s3_u3x2_p0:2x1:0_d1x2_bf16nchw"),
    ("conv_fprop", "n2c6h5w4_k6r3s3_p1_g6_f32nchw"),
    ("conv_fprop", "n2c20h5w4_k40r3s2_p1_g10_f16nhwc"),
    ("conv_fprop", "n1c4h6w7_k18r2s2_f16nhwc_out2of23"),
    ("conv_gemm1x1", "n2c17h7w6_k19r1s1_f16nhwc"),
    ("conv_gemm1x1", "n1c33h9w5_k35r1s1_u2x3_f32nchw_bias"),
    ("conv_gemm1x1", "n3c16h5w5_k16r1s1_bf16nhwc_relu"),
)
# Strides, tails, layouts, epilogues, slices, depth of one channel; behind an implicit product also padding, groups,
# dilation, taps numbered with their channels and in blocks.
NORMED = (
    ("conv_gemm1x1", "n2c17h7w6_k19r1s1_f32nhwc"),
    ("conv_gemm1x1", "n1c33h9w5_k35r1s1_u2x3_f16nchw_bias_relu"),
    ("conv_gemm1x1", "n3c16h5w5_k16r1s1_bf16nhwc_bias_res_silu"),
    ("conv_gemm1x1", "n1c1h7w9_k3r1s1_f32nchw_res"),
    ("conv_gemm1x1", "n2c40h4w9_k21r1s1_u2_f16nhwc_out3of29"),
    ("conv_gemm1x1", "n2c18h5w7_k33r1s1_bf16nchw_bias_hardswish"),
    ("conv_fprop", "n2c5h7w9_k19r3s2_u2x1_p1_f32nhwc"),
    ("conv_fprop", "n1c16h6w5_k17r3s2_p2x1_f16nhwc_bias_res_relu"),
    ("conv_fprop", "n2c12h6w5_k34r2s3_p1_g2_f32nchw_out3of41"),
    ("conv_fprop", "n1c33h9w8_k17r2s3_u3x2_p0:2x1:0_d1x2_bf16nchw_bias_silu"),
    ("conv_fprop", "n2c4h5w4_k8r3s3_p1_g4_f16nchw"),
    ("conv_fprop", "n2c40h5w4_k40r3s2_p1_g10_f16nhwc_bias"),
    ("conv_fprop", "n1c7h4w6_k5r1s1_p1x2_bf16nhwc"),
)


def run(planned):
    y, launches = planned
    for launch in launches:
        launch()
    return y


def check_moments(file, problem: Problem, number: int) -> None:
    """y is what it is without them, bit by bit; they are y's own, as it was stored, and nothing beside is written."""
    module = rows.load(file)
    operands = inputs.make(problem, number, integer=False)
    # A mean of many deviations, where sums of squares would cancel.
    operands.first.add_(number % 2 * 64)
    named = operands.named(problem)
    plain, out = (inputs.guarded_output(problem, number % 16) for _ in range(2))
    stats = guard.GuardedOutput((2, problem.k), torch.float32, offset=number % 16)
    with configure.forced(small_tile(problem, number)):
        run(module.plan(problem, **named, out=plain.buffer))
        run(module.plan(problem, **named, out=out.buffer, stats=stats.tensor))
    case = f"{file} on {problem}, {number=}"
    for buffer in (out, stats):
        assert buffer.violation() is None, f"{case}: {buffer.violation()}"
    assert torch.equal(out.tensor, plain.tensor), case
    exact = out.tensor.double()
    variance, mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
    sizes = exact.abs().amax((0, 2, 3))
    allowed = 1e-5 * variance + 1e-12 * sizes.square() + torch.finfo(torch.float32).tiny  # below it squares lose digits
    assert ((stats.tensor[0] - mean).abs() <= 1e-6 * sizes).all(), f"{case}: mean"
    assert ((stats.tensor[1] - variance).abs() <= allowed).all(), f"{case}: variance"


def check_norm(file: str, problem: Problem, number: int) -> None:
    """Bit by bit what the kernel computes of a normalised tensor in memory."""
    module, activation = rows.load(file), ACTIVATIONS[number % len(ACTIVATIONS)]
    operands = inputs.make(problem, number, integer=False).named(problem)
    generator = torch.Generator().manual_seed(number)
    stats = torch.rand(2, problem.c, generator=generator) * 3
    weight, bias = (torch.randn(problem.c, generator=generator) for _ in range(2))
    weight, bias = (weight, bias) if number % 3 else (None, None)
    text = f"batchnorm2d_n{problem.n}c{problem.c}h{problem.h.size}w{problem.w.size}_{problem.dtype}{problem.layout}"
    before = Problem(text).replace(activation=activation, alpha=SLOPE if activation == "leaky_relu" else 0.0)
    affine = {"w": weight, "bias": bias, "mean": stats[0], "variance": stats[1], "eps": EPS}
    out, expected = (inputs.guarded_output(problem, number % 16) for _ in range(2))
    guarded = {name: guard.guarded(t, number % 16) for name, t in operands.items()}
    norm = prologue.Norm(guard.guarded(stats), weight, bias, EPS, activation, before.alpha)
    with configure.forced(small_tile(problem, number)):
        hidden = run(rows.load("norm_fprop").plan(before, x=operands["x"], **affine))
        run(module.plan(problem, **operands | {"x": hidden}, out=expected.buffer))
        run(module.plan(problem, **guarded, norm=norm, out=out.buffer))
    assert out.violation() is None, f"{file} on {problem}, {number=}: {out.violation()}"
    assert torch.equal(out.tensor, expected.tensor), f"{file} on {problem}, {number=}"


@pytest.mark.parametrize(("file", "text"), MEASURED)
@pytest.mark.parametrize("number", [0, 1])
def test_statistics_are_those_of_what_was_stored(file, text, number):
    check_moments(file, Problem(text), number)


@pytest.mark.parametrize(("file", "text"), NORMED)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_norm_on_the_way_is_one_in_memory(file, text, number):
    check_norm(file, Problem(text), number)


@pytest.mark.parametrize("number", range(3, 8))
def test_every_activation_on_the_way_is_one_in_memory(number):
    check_norm("conv_fprop", Problem("n1c5h6w5_k6r3s2_p1_f32nhwc"), number)


@pytest.mark.parametrize(
    ("file", "text"),
    [("conv_gemm1x1", "n2c17h7w6_k19r1s1_f32nhwc"), ("conv_fprop", "n2c17h7w6_k19r2s3_p1_f32nhwc")],
)
def test_a_product_takes_a_norm_and_measures(file, text):
    """A chain of both: the statistics are those of the result behind the norm."""
    problem, module = Problem(text), rows.load(file)
    operands = inputs.make(problem, 0, integer=False).named(problem)
    given, stats = torch.rand(4, 17), torch.empty(2, 19)
    norm = prologue.Norm(given[:2], given[2], given[3], EPS, "relu")
    with configure.forced(configure.Tile(16, 16, 16)):
        y = run(module.plan(problem, **operands, norm=norm, stats=stats))
    assert torch.allclose(stats[0], y.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(stats[1], y.var((0, 2, 3), correction=0), rtol=1e-5)


@pytest.mark.parametrize("most", [4, 7, 64])
def test_pieces_are_merged_in_double_in_as_many_levels_as_needed(most, monkeypatch):
    """Three, two and one level of 61 pieces, of which one is empty: rounded once a level; the same bits twice."""
    monkeypatch.setattr(moments, "MOST_MERGED", most)
    partial = moments.room(61, 70, torch.device("cpu"))
    partial[:, 0], partial[:, 1], partial[:, 2] = 30, torch.randn(61, 70) + 100, torch.rand(61, 70) * 30
    partial[17] = 0
    results = []
    for _ in range(2):
        stats = guard.guarded(torch.empty(2, 70))
        for launch in moments.merges(partial, stats):
            launch()
        results.append(stats)
    count, mean, squares = partial.double().unbind(1)
    expected = (count * mean).sum(0) / count.sum(0)
    variance = (squares + count * (mean - expected).square()).sum(0) / count.sum(0)
    unit = 2.0**-24
    assert ((results[0][0] - expected).abs() <= 3 * unit * expected).all()
    assert ((results[0][1] - variance).abs() <= 1e-5 * variance).all()
    assert torch.equal(*results)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["conv_fprop", "conv_gemm1x1", "normed conv_fprop", "normed conv_gemm1x1"])
def test_random_problems(kind):
    rng, found = random.Random(kind), 0
    file = kind.split()[-1]
    module = rows.load(file)
    while found < RANDOM:
        problem = fuzz.random_problem(rng, max_flops=MAX_FLOPS, pass_="fprop", pointwise=file != "conv_fprop")
        pixels = problem.n * max(problem.h.size * problem.w.size, problem.h.out * problem.w.out)
        if problem.dtype == "f64" or pixels > MAX_PIXELS or module.refuses(problem) is not None:
            continue
        check = check_norm if kind.startswith("normed") else check_moments
        check(file, problem, found)
        found += 1
