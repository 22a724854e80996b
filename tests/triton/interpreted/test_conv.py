"""Every Triton convolution kernel against the float64 reference, by the check the C++ kernels take: guarded buffers."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure
from fastconv.problem import Problem
from fastconv.testing import corpus, fuzz, guard, inputs
from fastconv.testing.check import check_conv, run_guarded

from .tiles import small_tile

KERNELS = [row for row in rows.rows() if row.op == "conv2d"]
COPYING = {row.name for row in KERNELS if "persistent" in row.name or "boxes" in row.name}  # by descriptors
DTYPES = ("f32", "f16", "bf16")
PLAIN = {"bias": False, "residual": False, "activation": "none", "alpha": 0.0, "out_channels": 0, "out_offset": 0}
PROBLEMS = 10  # of the edge corpus, of each kernel in the ordinary run
RANDOM = 100  # of each kernel in the full run
MAX_FLOPS, MAX_PIXELS = 3e5, 500  # of the ordinary run
FULL_FLOPS = 3e5

# Products of whole rows of 16 bytes, for kernels that copy by descriptor: tails of pixels, columns and depth, several
# tiles for a block, residuals and slices; boxes of every shape, padding on one side, cropped edges, dilation.
ALIGNED = (
    "n2c16h6w5_k24r1s1_bf16nhwc_bias_res_relu",
    "n3c40h5w7_k56r1s1_f16nhwc_bias_silu",
    "n1c8h9w11_k8r1s1_f16nhwc",
    "n2c24h3w17_k40r1s1_bf16nhwc_relu6_out8of64",
    "n1c72h7w5_k16r1s1_f16nhwc_bias_res_gelu",
    "n2c32h8w9_k48r1s1_f16nhwc_relu",
    "n1c48h13w4_k72r1s1_bf16nhwc_out3of100",
    "n5c16h3w4_k32r1s1_f16nhwc_bias",
    "n1c24h5w9_k24r1s1_bf16nhwc_res_relu",
    "n2c16h5w3_k24r1s1_f16nhwc_res_relu_out2of40",
    "n2c16h6w5_k24r3s2_p1x0_bf16nhwc_bias_res_relu",
    "n3c24h5w9_k8r2s3_p1_d1x2_f16nhwc_bias_silu",
    "n1c8h13w18_k40r3s3_p0:2x1:0_f16nhwc",
    "n17c8h2w3_k16r3s3_p1_f16nhwc_relu6_out8of64",
    "n1c40h9w11_k16r4s3_p3x2_bf16nhwc_res_gelu",
    "n2c16h7w6_k8r3s2_p1:-2x0_d2x3_f16nhwc_out3of20",
    "n1c16h17w9_k24r5s1_p2x0_bf16nhwc_bias",
    "n5c8h4w3_k8r2s2_p1x0:1_f16nhwc_res_relu_out2of40",
    "n2c16h8w6_k24r3s3_u2_p1_f16nhwc_bias_res_relu",
    "n1c48h9w8_k8r2s3_u3x2_p2x1_d2x1_bf16nhwc_silu_out3of20",
    "n3c16h6w12_k16r3s5_u1x4_p3x2_f16nhwc_bias",
    "n1c24h12w5_k16r4s1_u4x1_p1:-2x0_d3x1_bf16nhwc_relu6",
    "n2c32h4w6_k40r1s1_u2x3_f16nhwc_res_relu",
)

# What a sample of the corpus could leave out, of every pass: phases without taps and larger than the map, dilation that
# shares a divisor with the stride, several groups, also more than share a tile, few channels and many, padding on one
# side, a slice, a multiplier.
CORNERS = (
    "n2c5h7w9_k6r3s2_u2x3_p1x0_f32nhwc",
    "n1c3h9w8_k17r4s3_u3x2_p0:2x1:0_f16nchw_bias_relu",
    "n1c20h5w7_k18r3s2_p2x1_d2x1_u2x1_f32nhwc",
    "n2c12h6w5_k8r2s3_p1_g4_bf16nhwc_bias_silu",
    "n2c40h6w5_k40r3s2_p1_g10_f16nhwc_bias_out2of45",
    "n1c21h5w4_k84r2s3_u2x1_p1_g7_bf16nhwc_relu",
    "n1c21h5w4_k14r3s2_p1x0_d1x2_g7_f32nchw_bias_res",
    "n1c33h4w5_k35r1s3_p0x1_f32nchw_bias_res_gelu",
    "n1c6h2w3_k5r3s2_u4x5_p1_f32nhwc",
    "n1c7h6w5_k14r3s2_u2x1_p1_g7_f32nhwc_bias_res_hardswish",
    "n2c5h7w6_k5r4s3_u2x3_p2x1_d2x3_g5_f16nhwc_leakyrelu0.1",
    "n1c18h5w6_k18r5s3_p2x1_g18_bf16nchw_relu6",
    "n2c17h5w6_k19r1s1_f16nhwc_bias_res_relu",
    "n1c16h5w4_k20r1s1_u2x3_f32nchw_sigmoid",
    "n1c18h5w4_k20r1s1_f32nhwc_bias_out3of29",
    "n1c5h6w7_k6r3s2_p1_f16nchw_out2of9",
    *ALIGNED,
    "n2c5h4w3_k6r1s1_f32nchw_res_out2of11",
    "n2c5h4w3_k6r1s1_f16nhwc_bias_res_out2of11",
    "n1c32h6w7_k32r2s3_p1_d1x2_f16nhwc",
)


def of_pass(problem: Problem, pass_: str) -> Problem:
    """The problem with another pass, without what that pass has not."""
    if pass_ == "wgrad":
        return problem.replace(pass_=pass_, **PLAIN)
    if pass_ == "dgrad" and problem.out_channels:
        return problem.replace(pass_=pass_, out_channels=problem.c + problem.out_offset + 5)
    return problem.replace(pass_=pass_)


def is_small(problem: Problem) -> bool:
    pixels = problem.n * max(problem.h.size * problem.w.size, problem.h.out * problem.w.out)
    return problem.flops <= MAX_FLOPS and pixels <= MAX_PIXELS


def variants(base: Problem, number: int) -> Problem:
    """One of the six pairs of dtype and layout."""
    return base.replace(dtype=DTYPES[number % 3], layout=("nhwc", "nchw")[number // 3 % 2])


def sample(kernel) -> list[Problem]:
    """Corners and a part of the edge corpus that the kernel takes, the same in every run."""
    corners = [of_pass(Problem(text), kernel.pass_) for text in CORNERS]
    edges = [
        variants(of_pass(base, kernel.pass_), i) for i, base in enumerate(corpus.load("edge_conv")) if is_small(base)
    ]
    random.Random(kernel.name).shuffle(edges)
    taken = [problem for problem in edges if kernel.refuses(problem) is None]
    return [problem for problem in corners if kernel.refuses(problem) is None] + taken[:PROBLEMS]


def check(kernel, problem: Problem, number: int, integer: bool) -> None:
    """One check with a small tile; its message names everything that repeats it."""
    tile = small_tile(problem, number)
    # A kernel that copies by descriptors hands operands over to another one that are not aligned or lie otherwise.
    copies = kernel.name in COPYING
    try:
        with configure.forced(tile):
            check_conv(
                kernel,
                problem,
                seed=number,
                integer=integer,
                offset=number % 2 * 8 if copies else number % 16,
                weight_channels_last=copies or bool(number % 2),
                weight_gap=0 if copies else (0, 0, 1)[number % 3],
            )
    except AssertionError as error:
        raise AssertionError(f"{kernel.name} on {problem}, {tile}, number={number}, {integer=}: {error}") from None


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernel_agrees_with_the_oracle(kernel):
    """Equality on integers; on every fourth problem the bound on real values."""
    problems = sample(kernel)
    assert len(problems) >= PROBLEMS
    for i, problem in enumerate(problems):
        check(kernel, problem, i, integer=i % 4 != 3)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_default_tiles_agree_too(kernel):
    """The tiles the model picks, on a problem that does not fill one."""
    problem = next(p for p in sample(kernel) if p.dtype == "f16")
    check_conv(kernel, problem.replace(dtype="f32"))
    check_conv(kernel, problem, integer=False)


@pytest.mark.parametrize(("dtype", "half"), [("bf16", 256.0), ("f16", 2048.0)])
def test_sums_are_rounded_once_to_the_nearest_and_even(dtype, half):
    """Between two numbers of the type the even one wins; what is not finite stays what it is."""
    nan, inf = float("nan"), float("inf")
    problem = Problem(f"n1c2h1w6_k1r1s1_{dtype}nhwc")
    x = torch.tensor([[half, half, -half, nan, inf, -inf], [1, 3, -1, 1, 1, 1]]).view(1, 2, 1, 6)
    x = x.to(inputs.DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    kernel = next(k for k in KERNELS if k.name == "conv2d/fprop_gemm1x1_triton")
    y = kernel.run(problem, x=x, w=x.new_ones(1, 2, 1, 1))
    expected = torch.tensor([half, half + 4, -half, nan, inf, -inf], dtype=y.dtype).view_as(y)
    assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.name in COPYING], ids=lambda k: k.name)
def test_a_kernel_that_copies_takes_the_aligned_and_hands_over_the_rest(kernel):
    pointwise = "1x1" in kernel.name
    problem = of_pass(Problem(next(text for text in ALIGNED if ("r1s1" in text) == pointwise)), kernel.pass_)
    operands = inputs.make(problem, 0, integer=True).named(problem)
    file = rows.load(rows.file_of(kernel))
    if "w" in operands:
        operands["w"] = operands["w"].contiguous(memory_format=torch.channels_last)
    others = [{name: guard.guarded(operands[name], offset=1)} for name in ("x", "y", "w") if name in operands]
    if "w" in operands and not pointwise:
        others.append({"w": operands["w"].contiguous()})
    assert file.plan(problem, **operands)[1][0].kernel is file.kernel
    for other in (*others, {"architecture": 80}):
        assert file.plan(problem, **operands | other)[1][0].kernel is not file.kernel
        if "w" in other:
            check_conv(kernel, problem, weight_channels_last=False)


def test_a_stride_multiplies_no_pixel_that_it_skips():
    """Not even by zero: 48 channels are no whole blocks of 32."""
    problem = Problem("n1c48h4w6_k16r1s1_u2x3_f16nhwc")
    operands = inputs.make(problem, 0, integer=True).named(problem)
    kernel = next(k for k in KERNELS if k.name == "conv2d/fprop_persistent_triton")
    skipped = torch.full_like(operands["x"], float("inf"))
    skipped[:, :, ::2, ::3] = operands["x"][:, :, ::2, ::3]
    operands["w"] = operands["w"].contiguous(memory_format=torch.channels_last)
    with configure.forced(configure.Tile(16, 16, 32)):
        y = kernel.run(problem, **operands | {"x": skipped})
        assert torch.equal(y, kernel.run(problem, **operands)) and y.isfinite().all()


def test_a_filter_gradient_multiplies_no_pixel_that_a_tap_does_not_reach():
    """Not even by zero: a box that went over the edge of dy would."""
    problem = Problem("n3c16h6w10_k16r1s3_p0x1_f16nhwc_wgrad")
    kernel = next(k for k in KERNELS if k.name == "conv2d/wgrad_boxes_triton")
    operands = inputs.make(problem, 0, integer=True).named(problem)
    operands["x"][..., -1] = float("inf")
    operands["y"].fill_(1)
    dw = kernel.run(problem, **operands)
    assert dw[..., 0].isfinite().all() and not dw[..., 1:].isfinite().any()


def test_boxes_of_a_filter_gradient_divide_its_map():
    box_of = rows.load("conv_boxes_wgrad").box_of
    shapes = {(64, 56, 56): (1, 8, 8), (128, 28, 30): (16, 4, 2), (32, 7, 7): (32, 1, 1), (16, 3, 64): (1, 1, 16)}
    assert {shape: box_of(*shape) for shape in shapes} == shapes


def test_boxes_are_as_few_as_can_be():
    """Across the images of a batch where maps are small, one map's rows and columns where they are large."""
    box_of = rows.load("conv_persistent").box_of
    shapes = {
        (128, 256, 7, 7): (1, 1),
        (128, 256, 14, 14): (1, 1),
        (128, 256, 28, 28): (4, 4),
        (128, 1, 56, 64): (8, 16),
        (256, 32, 56, 54): (8, 8),
        (64, 1, 14, 14): (8, 8),
        (16, 1, 9, 9): (4, 4),
    }
    assert {shape: box_of(*shape) for shape in shapes} == shapes


def suited(kernel, text: str) -> Problem:
    """The filter gradient in the groups, or with the channels, that the kernel takes."""
    problem = Problem(text)
    if "depthwise" in kernel.name:
        return problem.replace(groups=problem.c)
    return problem.replace(c=8, k=8, dtype="f16") if kernel.name in COPYING else problem


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.pass_ == "wgrad"], ids=lambda k: k.name)
def test_partial_sums_are_cut_by_the_problem_and_added_in_order(kernel):
    """Several pieces give the exact sum on integers and the same bits twice on real values."""
    problem = suited(kernel, "n3c6h9w8_k6r3s2_p1_f32nhwc_wgrad")
    tile = configure.Tile(16, 16, 16)
    operands = inputs.make(problem, 0, integer=False)
    with configure.forced(tile):
        first = rows.load(rows.file_of(kernel)).plan(problem, **operands.named(problem))[1][0]
        assert first.grid[1] > 1
        check_conv(kernel, problem)
        assert torch.equal(run_guarded(kernel, problem, operands), run_guarded(kernel, problem, operands))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.pass_ == "wgrad"], ids=lambda k: k.name)
def test_pieces_of_several_steps_agree_too(kernel):
    """With the tiles the model picks, whose pieces are longer than those of the small ones."""
    problem = suited(kernel, "n3c6h11w10_k6r3s3_p1_f32nhwc_wgrad")
    operands = inputs.make(problem, 0, integer=True).named(problem)
    first = rows.load(rows.file_of(kernel)).plan(problem, **operands)[1][0]
    assert first.grid[1] > 1 and first.arguments["piece_steps"] > 1
    check_conv(kernel, problem)


def any_problem(problem: Problem) -> bool:
    return True


def shared_tile(problem: Problem) -> bool:
    """Whether several groups are computed as one."""
    return configure.slab(problem, problem.c if problem.pass_ == "dgrad" else problem.k).groups > 1


def strided(problem: Problem) -> bool:
    return (problem.h.stride, problem.w.stride) != (1, 1)


# Kernel -> what few of any random problems have.
RARE = {
    "conv2d/fprop_igemm_triton": shared_tile,
    "conv2d/dgrad_igemm_triton": shared_tile,
    "conv2d/wgrad_splitk_triton": shared_tile,
    "conv2d/fprop_persistent_triton": strided,
    "conv2d/wgrad_boxes_triton": strided,
}
DRAWN = [(k, any_problem) for k in KERNELS] + [(k, RARE[k.name]) for k in KERNELS if k.name in RARE]


@pytest.mark.full
@pytest.mark.parametrize(("kernel", "wanted"), DRAWN, ids=lambda value: getattr(value, "name", None) or value.__name__)
def test_random_problems(kernel, wanted):
    rng, found = random.Random(kernel.name), 0
    while found < RANDOM:
        pointwise = "1x1" in kernel.name
        problem = fuzz.random_problem(rng, max_flops=FULL_FLOPS, pass_=kernel.pass_, pointwise=pointwise)
        pixels = problem.n * max(problem.h.size * problem.w.size, problem.h.out * problem.w.out)
        if kernel.refuses(problem) is None and pixels <= MAX_PIXELS and wanted(problem):
            check(kernel, problem, found, integer=found % 4 != 3)
            found += 1


@pytest.mark.full
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_edge_corpus(kernel):
    for i, base in enumerate(corpus.load("edge_conv")):
        if base.flops > FULL_FLOPS or base.n * base.h.size * base.w.size > 2 * MAX_PIXELS:
            continue
        for layout in ("nhwc", "nchw"):
            problem = of_pass(base.replace(dtype=DTYPES[i % 3], layout=layout), kernel.pass_)
            if kernel.refuses(problem) is None:
                check(kernel, problem, i, integer=bool(i % 2))
