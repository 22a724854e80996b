"""Every Triton pooling kernel against the float64 reference, by the check the C++ kernels take: guarded buffers."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure
from fastconv.problem import Problem
from fastconv.testing import corpus, fuzz_pool, guard, inputs
from fastconv.testing.check_pool import KINDS, check_pool

from .tiles import small_tile

KERNELS = [row for row in rows.rows() if row.op not in ("conv2d", "batchnorm2d", "lrn2d")]
DTYPES = ("f32", "f16", "bf16")
INDICES = {"unpool2d": ("i64",), "maxpool2d": ("u8", "i64", "none"), "adaptivemax2d": ("i64", "none")}
PROBLEMS = 8  # of each kernel in the ordinary run
RANDOM = 100  # of each kernel in the full run
MAX_PIXELS, MAX_TAPS = 400, 36  # of the ordinary run
FULL_PIXELS, FULL_TAPS = 400, 36

# What a sample of the corpus could leave out: a byte for taps of windows that are no squares, overlapping and dilated.
CORNERS = (
    "maxpool2d_n2c3h9w8_r3s2_u2x1_p1x0_f16nhwc_indexu8",
    "maxpool2d_n1c5h8w11_r2s4_u1x3_p1x2_d3x1_bf16nchw_indexu8",
    "adaptivemax2d_n2c3h5w7_o7x3_f32nhwc_indexi64",
    "avgpool2d_n2c3h7w9_r3s2_u2x1_p1_f32nchw_ceil_nopad",
    "avgpool2d_n1c3h8w7_r3s2_u2_p1x0_f16nhwc_ceil",
    "avgpool2d_n2c2h7w8_r2s3_u2_p0x1_f32nchw_ceil",
    "maxpool2d_n1c3h2w9_r2s3_p1_d3x1_f32nhwc_indexu8",
    "maxpool2d_n2c2h9w2_r3s2_p1_d1x3_f16nchw_indexi64",
    "adaptiveavg2d_n2c20h5w7_o1x1_bf16nhwc",
    "unpool2d_n2c35h3w5_o7x8_f16nchw_indexi64",
    "maxpool2d_n2c5h9w8_r3s2_u2x1_p1x0_f32nhwc_indexu8_out2of9",
    "adaptivemax2d_n2c3h5w7_o4x3_bf16nchw_indexi64_out3of7",
    "avgpool2d_n2c18h7w6_r3s2_u2x1_f16nhwc_out1of20",
    "adaptiveavg2d_n2c3h5w7_o4x3_f32nchw_out0of4",
)


def is_small(problem: Problem, pixels: int, taps: int) -> bool:
    h, w = problem.h, problem.w
    seen = h.window * w.window
    if problem.op.startswith("adaptive"):
        seen = (h.size // h.out + 2) * (w.size // w.out + 2)
    elif problem.op == "unpool2d":
        seen = 1
    return problem.n * max(h.size * w.size, h.out * w.out) <= pixels and seen <= taps


def sample(kernel) -> list[Problem]:
    """A part of the edge corpus that the kernel takes, the same in every run."""
    corners = [Problem(text).replace(pass_=kernel.pass_) for text in CORNERS]
    found = []
    for i, base in enumerate(corpus.load("edge_pool")):
        kinds = INDICES.get(base.op, ("none",))
        problem = base.replace(
            pass_=kernel.pass_, dtype=DTYPES[i % 3], layout=("nhwc", "nchw")[i // 2 % 2], index=kinds[i % len(kinds)]
        )
        if kernel.pass_ == "dgrad" and problem.index == "none":
            problem = problem.replace(index=kinds[0])
        if kernel.computes(problem) and kernel.refuses(problem) is None and is_small(problem, MAX_PIXELS, MAX_TAPS):
            found.append(problem)
    random.Random(kernel.name).shuffle(found)
    taken = [problem for problem in corners if kernel.computes(problem) and kernel.refuses(problem) is None]
    return taken + found[:PROBLEMS]


def check(kernel, problem: Problem, number: int) -> None:
    """One check with a small tile; its message names everything that repeats it."""
    selects = problem.op == "unpool2d" or (problem.pass_ == "fprop" and "max" in problem.op)
    kind = KINDS[number % 3] if selects else KINDS[number % 2]
    tile = small_tile(problem, number)
    try:
        with configure.forced(tile):
            check_pool(kernel, problem, kind=kind, seed=number, offset=number % 16)
    except AssertionError as error:
        raise AssertionError(f"{kernel.name} on {problem}, {tile}, {number=}, {kind}: {error}") from None


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernel_agrees_with_the_oracle(kernel):
    """Maxima, indices and NaN to the last bit; sums and averages within their bound."""
    problems = sample(kernel)
    assert problems
    for i, problem in enumerate(problems):
        check(kernel, problem, i)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
def test_an_index_outside_its_plane_reaches_nothing(pass_, layout):
    """It is not written, and its gradient is 0."""
    kernel = next(k for k in KERNELS if k.op == "unpool2d" and k.pass_ == pass_)
    problem = Problem(f"unpool2d_n2c3h2w2_o3x4_f32{layout}_indexi64").replace(pass_=pass_)
    format = inputs.memory_format(problem)
    index = torch.tensor([0, 11, -1, 12]).view(1, 1, 2, 2).expand(2, 3, 2, 2).contiguous(memory_format=format)
    size = (2, 3, 2, 2) if pass_ == "dgrad" else (2, 3, 3, 4)
    source = torch.ones(2, 3, 3, 4) if pass_ == "dgrad" else torch.ones(2, 3, 2, 2)
    out = guard.GuardedOutput(size, torch.float32, format)
    operand = guard.guarded(source.contiguous(memory_format=format))
    kernel.run(problem, **{"y" if pass_ == "dgrad" else "x": operand}, index=index, out=out.buffer)
    expected = torch.zeros(size)
    expected.view(2, 3, -1)[:, :, [0, 1] if pass_ == "dgrad" else [0, 11]] = 1
    assert out.violation() is None and torch.equal(out.tensor, expected)


@pytest.mark.full
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_random_problems(kernel):
    rng, found = random.Random(kernel.name), 0
    while found < RANDOM:
        problem = fuzz_pool.random_problem(rng, kernel.op, kernel.pass_)
        if kernel.refuses(problem) is None and is_small(problem, FULL_PIXELS, FULL_TAPS):
            check(kernel, problem, found)
            found += 1
