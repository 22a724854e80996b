"""Convolutions beside a training batch norm: its statistics from the epilogue, its apply on the way into a 1x1, and the
function of both with its gradients.
"""

from __future__ import annotations

import random

import pytest
import torch

from fastconv import functional
from fastconv.functional import conv_norm
from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure, moments, prologue
from fastconv.problem import Problem
from fastconv.testing import fuzz, guard, inputs

from .tiles import small_tile

EPS = 1e-3
SLOPE = 0.1
ACTIVATIONS = ("relu", "none", "silu", "relu6", "leaky_relu", "hardswish", "sigmoid", "gelu")
RANDOM = 100
MAX_FLOPS, MAX_PIXELS = 3e5, 500
MEASURED = (
    ("conv_fprop", "n2c5h7w9_k19r3s2_u2x1_p1_f32nhwc"),
    ("conv_fprop", "n3c12h6w5_k34r2s3_p1_g2_f16nhwc_bias_res_relu"),
    ("conv_fprop", "n1c3h9w8_k17r4s3_u3x2_p0:2x1:0_d1x2_bf16nchw"),
    ("conv_fprop", "n2c6h5w4_k6r3s3_p1_g6_f32nchw"),
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


def test_a_product_takes_a_norm_and_measures():
    """A chain of both: the statistics are those of the result behind the norm."""
    problem, module = Problem("n2c17h7w6_k19r1s1_f32nhwc"), rows.load("conv_gemm1x1")
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


@pytest.fixture
def fused(monkeypatch):
    """The kernels of GPUs, interpreted for CPU tensors."""
    monkeypatch.setattr(conv_norm, "DEVICES", ("cpu",))


def composed(x, w, mean, variance, scale, shift, residual=None, pointwise=None, activation="none", **geometry):
    """The same by torch's functions."""
    f = torch.nn.functional
    y = f.batch_norm(f.conv2d(x, w, None, **geometry), mean, variance, scale, shift, True, 0.3, EPS)
    y = y if residual is None else y + residual
    y = y.relu() if activation == "relu" else y
    return y if pointwise is None else f.conv2d(y, pointwise)


GEOMETRIES = {
    "dense": {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "grouped": {"groups": 3},
    "pointwise": {"stride": (1, 2)},
}


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("behind", ["nothing", "residual", "pointwise"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_function_and_its_gradients_are_torchs_in_double(geometry, behind, format, fused):
    options, activation = GEOMETRIES[geometry], "none" if geometry == "grouped" else "relu"
    window = (1, 1) if geometry == "pointwise" else (3, 2)
    x, w = torch.randn(2, 6, 8, 7).to(memory_format=format), torch.randn(9, 6 // options.get("groups", 1), *window)
    extra = {}
    if behind == "residual":
        extra["residual"] = torch.randn_like(torch.nn.functional.conv2d(x, w, None, **options))
    elif behind == "pointwise":
        extra["pointwise"] = torch.randn(5, 9, 1, 1)
    leaves = {"x": x, "w": w, "scale": torch.rand(9) + 0.5, "shift": torch.randn(9), **extra}
    results = []
    for function, dtype in ((functional.conv2d_batch_norm, torch.float32), (composed, torch.float64)):
        own = {name: t.detach().to(dtype).requires_grad_() for name, t in leaves.items()}
        running = torch.zeros(9, dtype=dtype), torch.ones(9, dtype=dtype)
        first, more = list(own.values())[:2], {name: own[name] for name in extra}
        ours = {"momentum": 0.3, "eps": EPS} if function is not composed else {}
        y = function(*first, *running, own["scale"], own["shift"], **options, activation=activation, **more, **ours)
        probe = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        results.append((y, *running, *torch.autograd.grad(y, list(own.values()), probe)))
    for mine, exact in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=5e-5)
    assert results[0][0].stride() == results[1][0].stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_in_its_dtype_with_parameters_of_float(dtype, fused):
    x, w, p = torch.randn(2, 6, 8, 7), torch.randn(9, 6, 3, 2, requires_grad=True), torch.randn(5, 9, 1, 1)
    scale, shift, mean, variance = torch.rand(9) + 0.5, torch.randn(9), torch.zeros(9), torch.ones(9)
    with torch.autocast("cpu", dtype=dtype):
        y = functional.conv2d_batch_norm(x, w, mean, variance, scale, shift, pointwise=p, activation="relu")
    expected = composed(x, w, None, None, scale, shift, pointwise=p, activation="relu")
    assert y.dtype == dtype and mean.abs().sum() > 0
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.1)
    (gradient,) = torch.autograd.grad(y.sum(), w)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()


def test_frozen_and_missing_parameters(fused):
    """What needs no gradient gets none, and absent parameters and statistics are allowed."""
    x, w = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = functional.conv2d_batch_norm(x, w, None, None)
    expected = torch.nn.functional.batch_norm(torch.nn.functional.conv2d(x, w), None, None, training=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for mine, exact in zip(*(torch.autograd.grad((t**2).sum() + t[0].sum(), w) for t in (y, expected)), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=1e-3)


def test_bad_input_is_named(fused):
    x, w = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    call = functional.conv2d_batch_norm
    for error, part, arguments, options in (
        (ValueError, "'tanh'", (x, w), {"activation": "tanh"}),
        (ValueError, "give one of them", (x, w), {"residual": x, "pointwise": w}),
        (ValueError, r"more than one value a channel.*\(1, 6, 1, 1\)", (x[:1, :, :3, :3], w), {}),
        (RuntimeError, r"weight has shape \(6, 5, 3, 3\), but C=4 in 1 groups", (x, torch.randn(6, 5, 3, 3)), {}),
        (RuntimeError, "weight is torch.float16", (x, w.half()), {}),
        (RuntimeError, r"residual has shape \(2, 6, 5, 5\)", (x, w), {"residual": torch.randn(2, 6, 5, 5)}),
        (RuntimeError, r"pointwise has shape \(3, 5, 1, 1\)", (x, w), {"pointwise": torch.randn(3, 5, 1, 1)}),
        (RuntimeError, r"norm_weight has shape \(5,\)", (x, w), {"norm_weight": torch.ones(5)}),
        (RuntimeError, r"running_mean has shape \(7,\)", (x, w), {"mean": torch.ones(7)}),
    ):
        with pytest.raises(error, match=part):
            call(*arguments, options.pop("mean", None), None, **options)
