"""What only Winograd kernels have: exactness on multiples of four, tiles that spread a NaN, a cost estimate."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fastconv import reference, registry
from fastconv.problem import Problem
from fastconv.testing import inputs, tolerances
from fastconv.testing.check import run_guarded

OVERHEAD = (64 + 21) / 64  # sums over 64 channels are stored as quickly as 21 more are added
ROOT = Path(__file__).parents[2]
KERNELS = [k for k in registry.kernels() if k.algorithm in tolerances.TILE]
BY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
FILTER = dict.fromkeys(tolerances.TILE, 3) | {"winograd2r5": 5}  # rows and columns
ONE_NAN = Problem("n1c3h13w14_k5r3s3_p1_f32nhwc")
CONVS = [k for k in registry.kernels() if k.op == "conv2d" and k.pass_ != "wgrad" and k.native is not None]


def taken(kernel, text: str) -> Problem:
    """A problem with 3x3 filters and padding, of the kernel's pass and with filters of the size that it takes."""
    beyond = FILTER.get(kernel.algorithm, 3) - 3
    text = text.replace("r3s3", f"r{3 + beyond}s{3 + beyond}").replace("_p1_", f"_p{1 + beyond // 2}_")
    return Problem(text).replace(pass_=kernel.pass_)


def skip_without_isa(kernel) -> None:
    """Skips where this machine lacks the kernel's instruction set."""
    refusal = kernel.refuses(taken(kernel, "n1c4h5w6_k4r3s3_p1_f32nhwc")) or ""
    if "no avx" in refusal.lower():
        pytest.skip(refusal)


@BY_KERNEL
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("n1c4h9w8_k4r3s4_f32nhwc", "The filter is 3x4"),
        ("n1c4h9w8_k4r3s3_u1x2_f32nhwc", "The stride is 1x2"),
        ("n1c4h9w8_k4r3s3_g2_f32nhwc", "There are 2 groups"),
    ],
)
def test_refusals_are_sentences(kernel, text, sentence):
    skip_without_isa(kernel)
    assert kernel.refuses(taken(kernel, text)).startswith(sentence)


@BY_KERNEL
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_relative_error_in_float(kernel, layout):
    """The errors of Lavin and Gray's table: about 4e-7 for F(2x2,3x3) and 1.1e-6 for F(4x4,3x3) at 2,304 terms."""
    skip_without_isa(kernel)
    problem = taken(kernel, "n1c256h14w13_k48r3s3_p1_f32nhwc").replace(layout=layout)
    problem = problem if kernel.pass_ == "fprop" else problem.replace(c=48, k=256)
    operands = inputs.make(problem, 0, integer=False)
    out = run_guarded(kernel, problem, operands).double()
    pair = dict(zip(inputs.operand_names(problem), (operands.first, operands.second), strict=True))
    exact = reference.conv2d(problem, **pair)
    error = ((out - exact).norm() / exact.norm()).item()
    assert error < {"winograd2": 6e-7, "winograd4": 1.6e-6, "winograd2r5": 1.6e-6}[kernel.algorithm]


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.pass_ == "wgrad"], ids=lambda k: k.name)
def test_wgrad_has_the_same_bits_however_many_threads_share_its_chunks(kernel):
    """Few threads take groups of chunks, many share every chunk: with F(2x2) 17 chunks in 9 groups."""
    skip_without_isa(kernel)
    problem = taken(kernel, "n3c3h53w51_k2r3s3_p1_f32nhwc")
    operands = inputs.make(problem, 0, integer=False)
    one = run_guarded(kernel, problem, operands, threads=1)
    for threads in (2, 3, 5, 16):
        assert torch.equal(one, run_guarded(kernel, problem, operands, threads=threads)), threads


@pytest.mark.parametrize(
    "kernel", [k for k in CONVS if k.refuses(taken(k, str(ONE_NAN))) is None], ids=lambda k: k.name
)
def test_where_a_nan_goes(kernel):
    """Exactly where torch's goes; in a Winograd kernel there too, and no further than the tiles that see it."""
    problem = taken(kernel, str(ONE_NAN))
    reach = problem.h.window // 2
    operands = inputs.make(problem, 0, integer=False)
    row, column = 6, 7
    operands.first[0, 1, row, column] = float("nan")
    reached = run_guarded(kernel, problem, operands)[0].isnan()
    pixels = torch.zeros(reached.shape, dtype=torch.bool)
    pixels[:, row - reach : row + reach + 1, column - reach : column + reach + 1] = True
    if not kernel.spreads_nan:
        assert torch.equal(reached, pixels)
        return
    tile = tolerances.TILE[kernel.algorithm]
    within = torch.zeros_like(pixels)
    rows, columns = ((at - reach) // tile * tile for at in (row, column))
    ends = [((at + reach) // tile + 1) * tile for at in (row, column)]
    within[:, rows : ends[0], columns : ends[1]] = True
    assert (reached & pixels).sum() == pixels.sum() and not (reached & ~within).any()


@pytest.fixture(scope="module")
def ask_cost(tmp_path_factory):
    """Runs winograd_cost.cpp: (problem, threads, outputs, lanes) to a dictionary."""
    program = tmp_path_factory.mktemp("winograd") / "cost"
    sources = [ROOT / "tests/kernels/winograd_cost.cpp", *sorted((ROOT / "csrc/core").glob("*.cpp"))]
    command = [os.fspath(shutil.which("c++") or "g++"), "-std=c++20", f"-I{ROOT}/csrc", "-o", str(program)]
    subprocess.run([*command, *map(str, sources)], check=True)
    names = "by_panels tiles panels blocks flops moved shared memory imbalance seconds"

    def ask(*question) -> dict[str, float]:
        line = " ".join(map(str, question))
        answer = subprocess.run([str(program)], input=line, capture_output=True, text=True, check=True)
        return dict(zip(names.split(), map(float, answer.stdout.split()), strict=True))

    return ask


def test_cost_counts_the_work(ask_cost):
    """Four times fewer multiplications for F(4x4) on whole tiles, 2.25 times for F(2x2); transforms counted by hand."""
    text = "n1c64h56w56_k64r3s3_p1_f32nhwc"
    four, two = ask_cost(text, 2, 4, 16), ask_cost(text, 2, 2, 16)
    assert (four["tiles"], two["tiles"]) == (14 * 14, 28 * 28)
    assert four["flops"] == pytest.approx(OVERHEAD * Problem(text).flops / 4, rel=1e-5)
    assert two["flops"] == pytest.approx(OVERHEAD * Problem(text).flops / 2.25, rel=1e-5)
    filters, squares = 64 * 64 * (36 + 27), 196 * 64 * (72 + 36 + 16)
    assert four["moved"] == pytest.approx(4 * (filters + squares), rel=1e-5)
    assert four["memory"] == pytest.approx(Problem(text).bytes, rel=1e-5)
    assert four["seconds"] < two["seconds"]


@pytest.mark.parametrize(
    ("axis", "lines", "tiles"), [("h28w28_p2_d2", 4, 16), ("h28w28_p4_d4", 16, 4), ("h5w5_p9_d9", 25, 1)]
)
def test_dilated_maps_are_cut_into_lines_of_their_own(ask_cost, axis, lines, tiles):
    size, *rest = axis.split("_")
    text = "_".join([f"n1c64{size}", "k64r3s3", *rest, "f32nhwc"])
    assert ask_cost(text, 2, 4, 16)["tiles"] == lines * tiles


def test_cost_counts_the_work_of_larger_filters(ask_cost):
    text = "n1c64h28w28_k192r5s5_p2_f32nhwc"
    assert ask_cost(text, 2, 2, 16)["flops"] == pytest.approx(OVERHEAD * Problem(text).flops * 36 / 100, rel=1e-5)


def test_cost_sees_who_shares_what(ask_cost):
    """Few tiles are shared by threads that split the channels; many are split, one thread or two."""
    small = "n1c512h7w7_k512r3s3_p1_f32nhwc"
    assert ask_cost(small, 2, 4, 16)["by_panels"] == 1
    assert ask_cost(small, 32, 4, 16)["panels"] == 32  # narrow ones, so that every thread has one
    assert ask_cost("n8c64h56w56_k64r3s3_p1_f32nhwc", 2, 4, 16)["by_panels"] == 0
    one, two = (ask_cost("n1c64h56w56_k64r3s3_p1_f32nhwc", threads, 4, 16) for threads in (1, 2))
    assert one["seconds"] == pytest.approx(2 * two["seconds"], rel=0.01)
    planes = ask_cost("n1c64h56w56_k64r3s3_p1_f32nchw", 2, 4, 16)
    assert planes["moved"] > two["moved"] and planes["flops"] == two["flops"]
