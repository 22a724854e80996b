"""Every Triton batch norm against the float64 reference, by the check the C++ kernels take: guarded buffers."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure, norm_fprop, norm_grad
from fastconv.problem import Problem
from fastconv.testing import corpus, fuzz_norm
from fastconv.testing.check_norm import check_norm
from fastconv.testing.norm_case import KINDS

from .tiles import small_tile

KERNELS = [row for row in rows.rows() if row.op == "batchnorm2d"]
DTYPES = ("f32", "f16", "bf16")
PROBLEMS = 8  # of each kernel in the ordinary run
RANDOM = 100  # of each kernel in the full run
MAX_ELEMENTS = 20_000


def variants(kernel) -> list[Problem]:
    """A part of the edge corpus that the kernel takes, the same in every run."""
    found = []
    for i, base in enumerate(corpus.load("edge_norm")):
        changes = {"pass_": kernel.pass_, "dtype": DTYPES[i % 3], "layout": ("nhwc", "nchw")[i // 3 % 2]}
        if kernel.pass_ != "fprop":
            changes |= {"residual": False, "activation": "none", "alpha": 0.0}
        problem = base.replace(**changes)
        small = problem.n * problem.c * problem.h.size * problem.w.size <= MAX_ELEMENTS
        if small and kernel.computes(problem) and kernel.refuses(problem) is None:
            found.append(problem)
    random.Random(kernel.name).shuffle(found)
    return found[:PROBLEMS]


def check(kernel, problem: Problem, number: int) -> None:
    """One check with a small tile; its message names everything that repeats it."""
    tile, kind, affine = small_tile(problem, number), KINDS[number % 3], bool(number % 4)
    try:
        with configure.forced(tile):
            check_norm(kernel, problem, kind=kind, seed=number, offset=number % 16, affine=affine)
    except AssertionError as error:
        raise AssertionError(f"{kernel.name} on {problem}, {tile}, {number=}, {kind}: {error}") from None


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernel_agrees_with_the_oracle(kernel):
    """In inference and in training, with large means too."""
    problems = variants(kernel)
    assert problems
    for i, problem in enumerate(problems):
        for training in (False, True):
            check(kernel, problem.replace(training=training), i)


def test_without_a_mean_nothing_is_taken_away():
    """Inference with variances alone, and without weight and bias."""
    kernel = next(k for k in KERNELS if k.pass_ == "fprop")
    x, variance = torch.randn(2, 5, 4, 6), torch.rand(5) + 0.5
    y = kernel.run(Problem("batchnorm2d_n2c5h4w6_f32nchw"), x=x, variance=variance, eps=1e-3)
    torch.testing.assert_close(y, x / (variance + 1e-3).sqrt().view(5, 1, 1))


@pytest.mark.parametrize("text", ["n2c5h4w6_f32nhwc_res_relu_out2of9", "n2c5h4w6_f16nchw_out4of9"])
def test_a_slice_is_all_that_is_written(text):
    problem = Problem(f"batchnorm2d_{text}")
    kernel = next(k for k in KERNELS if k.pass_ == "fprop")
    for training in (False, True):
        check(kernel, problem.replace(training=training), 0)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_pieces_of_several_tiles_agree_too(kernel, layout):
    """The tiles the model picks, on pixels enough for two pieces, the second a short one."""
    size = {"nhwc": "h31w20", "nchw": "h61w50"}[layout]
    problem = Problem(f"batchnorm2d_n3c5{size}_f32{layout}_train").replace(pass_=kernel.pass_)
    steps, pieces = norm_fprop.pieces_of(problem, norm_fprop.tile_of(problem), 90)
    assert steps > 1 and pieces > 1
    check_norm(kernel, problem, kind=KINDS[0], seed=1)


BEFORE = {
    "relu": lambda d, u: torch.ops.aten.threshold_backward(d, u, 0),
    "relu6": lambda d, u: torch.ops.aten.hardtanh_backward(d, u, 0, 6),
    "leaky_relu": lambda d, u: torch.ops.aten.leaky_relu_backward(d, u, 0.25, False),
    "silu": torch.ops.aten.silu_backward,
    "hardswish": torch.ops.aten.hardswish_backward,
    "hardsigmoid": torch.ops.aten.hardsigmoid_backward,
    "sigmoid": lambda d, u: torch.ops.aten.sigmoid_backward(d, u.sigmoid()),
    "gelu": torch.ops.aten.gelu_backward,
    "gelutanh": lambda d, u: torch.ops.aten.gelu_backward(d, u, approximate="tanh"),
}


def through(problem: Problem, operands: dict, behind: norm_grad.Behind | None, **changed) -> tuple:
    """The gradients of x, and of weight and bias, behind something."""
    pair = torch.full((2, problem.c), torch.nan)
    dx, launches = norm_grad.plan(problem, **operands | changed, stats=pair, behind=behind)
    for launch in launches:
        launch()
    return dx, pair


@pytest.mark.parametrize("text", ["n2c5h4w7_f32nhwc", "n3c6h5w4_f16nhwc", "n2c19h3w7_f32nchw"])
@pytest.mark.parametrize("activation", BEFORE)
def test_an_activation_behind_has_the_bits_of_its_gradient_stored(activation, text):
    """Taken at the norm's own result, or at one given; stored on the way, or not."""
    problem = Problem(f"batchnorm2d_{text}_dgrad").replace(training=True)
    c, dtype = problem.c, torch.float16 if problem.dtype == "f16" else torch.float32
    x, dy, at = (t * 3 for t in torch.randn(3, problem.n, c, problem.h.size, problem.w.size).to(dtype).unbind())
    if problem.layout == "nhwc":
        x, dy, at = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy, at))
    # torch's gradient of these at NaN depends on the place in its vectors.
    nan = 1.0 if activation in ("relu6", "hardswish", "hardsigmoid") else torch.nan
    at[0, 0] = torch.tensor([0.0, 6.0, -3.0, 3.0, nan, -0.0, 7.0]).repeat(9)[: at[0, 0].numel()].view_as(at[0, 0])
    stats, w, bias = torch.stack([torch.randn(c), torch.rand(c) + 0.5]), torch.randn(c), torch.randn(c) + 2
    operands = {"y": dy, "x": x, "mean": stats[0], "variance": stats[1], "w": w}
    norm = Problem(str(problem).replace("_dgrad", "").replace("_train", ""))
    u, launches = norm_fprop.plan(norm, x=x, w=w, bias=bias, mean=stats[0], variance=stats[1])
    for launch in launches:
        launch()
    for told in (None, at):
        kept = torch.full_like(x, torch.nan)
        expected = BEFORE[activation](dy.float(), (u if told is None else told).float()).to(dtype)
        behind = norm_grad.Behind(activation, 0.25, bias, told, kept)
        found = through(problem, operands, behind)
        close = (
            {"rtol": 0, "atol": 0} if activation in ("relu", "relu6", "leaky_relu") else {"rtol": 2e-3, "atol": 2e-3}
        )
        torch.testing.assert_close(kept, expected, equal_nan=True, **close)
        plain = through(problem, operands, None, y=kept)
        again = through(problem, operands, norm_grad.Behind(activation, 0.25, bias, told))
        for one, other in zip((*found, *again), (*plain, *plain), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.full
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_random_problems(kernel):
    rng, found = random.Random(kernel.name), 0
    while found < RANDOM:
        problem = fuzz_norm.random_problem(rng, kernel.pass_)
        if kernel.refuses(problem) is None and problem.n * problem.c * problem.h.size * problem.w.size <= MAX_ELEMENTS:
            check(kernel, problem, found)
            found += 1
