"""Every Triton batch norm against the float64 reference, by the check the C++ kernels take: guarded buffers."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure, norm_fprop
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


@pytest.mark.full
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_random_problems(kernel):
    rng, found = random.Random(kernel.name), 0
    while found < RANDOM:
        problem = fuzz_norm.random_problem(rng, kernel.pass_)
        if kernel.refuses(problem) is None and problem.n * problem.c * problem.h.size * problem.w.size <= MAX_ELEMENTS:
            check(kernel, problem, found)
            found += 1
