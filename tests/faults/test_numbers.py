"""Denormals, NaN in every lane, and sizes around 2^16, for every native kernel."""

from __future__ import annotations

import pytest
import torch

from fastconv import functional, reference, reference_pool, registry
from fastconv.problem import Problem
from fastconv.testing import inputs, tolerances
from fastconv.testing.check import check_conv, run_guarded

CONVS = [k for k in registry.kernels() if k.op == "conv2d" and k.native is not None and not k.is_reference]
POOLS = [k for k in registry.kernels() if k.op not in ("conv2d", "unpool2d") and k.native is not None]
DTYPES = ("f32", "f64", "f16", "bf16")
LAYOUTS = ("nhwc", "nchw")
# The smallest number of the dtype above zero.
LEAST = {"f32": 2.0**-149, "f64": 2.0**-1074, "f16": 2.0**-24, "bf16": 2.0**-133}

# One problem a kind of kernel: several tasks, full vectors and tails along channels and columns.
SHAPES = (
    "n2c19h5w37_k18r3s2_p1_f32nhwc",
    "n2c37h6w35_k37r3s3_p1_g37_f32nhwc",
    "n1c2h3w2_k4r1s2_p0x1_g2_f32nhwc",
    "n2c37h5w19_k33r1s1_f32nhwc",
)


def accepted(kernel, shapes=SHAPES, dtypes=DTYPES):
    for text in shapes:
        for layout in LAYOUTS:
            for dtype in dtypes:
                problem = Problem(text).replace(pass_=kernel.pass_, layout=layout, dtype=dtype)
                if kernel.computes(problem) and kernel.refuses(problem) is None:
                    yield problem


EXACT = [k for k in CONVS if k.algorithm not in tolerances.INEXACT]


@pytest.mark.parametrize("kernel", EXACT, ids=lambda k: k.name)
def test_denormals_are_kept(kernel):
    """Sums of integers times the least positive number are exact; with two threads, the pool's own among them."""
    for i, problem in enumerate(accepted(kernel)):
        least, multiple = LEAST[problem.dtype], tolerances.WEIGHT_MULTIPLE.get(kernel.algorithm, 1)
        operands = inputs.make(problem, i, True, multiple)
        first = (operands.first.double() * least).to(operands.first.dtype)
        assert torch.equal(first.double(), operands.first.double() * least)
        scaled = inputs.Operands(first.contiguous(memory_format=inputs.memory_format(problem)), operands.second, None,
                                 None)  # fmt: skip
        exact = reference.conv2d(
            problem, **dict(zip(inputs.operand_names(problem), (operands.first, operands.second), strict=True))
        )
        out = run_guarded(kernel, problem, scaled, threads=2)
        kept = out.double() == exact * least
        if kernel.algorithm in tolerances.OF_BFLOAT16:
            kept |= out == 0
        assert kept.all(), str(problem)


@pytest.mark.parametrize("kernel", [k for k in POOLS if k.pass_ == "fprop"], ids=lambda k: k.name)
def test_pools_keep_denormals(kernel):
    for text in (
        "maxpool2d_n2c19h6w37_r3s2_u2x1_p1_f32nhwc",
        "avgpool2d_n2c19h6w37_r3s2_u2x1_p1_f32nhwc_div1",
        "adaptivemax2d_n2c19h6w37_o3x5_f32nhwc",
        "adaptiveavg2d_n2c19h6w37_o6x37_f32nhwc",
    ):
        for problem in accepted(kernel, (text,)):
            shape = (problem.n, problem.c, problem.h.size, problem.w.size)
            x = (torch.randint(-8, 9, shape).double() * LEAST[problem.dtype]).to(inputs.DTYPES[problem.dtype])
            x = x.contiguous(memory_format=inputs.memory_format(problem))
            expected = reference_pool.max_pool(problem, x)[0] if "max" in problem.op else None
            expected = reference_pool.average(problem, x) if expected is None else expected
            out = torch.empty(expected.shape, dtype=x.dtype).contiguous(memory_format=inputs.memory_format(problem))
            kernel.run(problem, out=out, x=x, threads=2)
            assert torch.equal(out.double(), expected), str(problem)


def flushes() -> bool:
    """Whether torch's threads, this one and the pool's, turn denormals into zeros."""
    denormal = torch.full((1 << 20,), 2.0**-140)
    flushed = (denormal * 1.0 == 0).sum().item()
    assert flushed in (0, denormal.numel()), "The threads differ."
    return flushed > 0


def test_no_call_changes_what_becomes_of_denormals():
    def call_everything() -> None:
        x, weight = torch.ones(2, 16, 20, 21, requires_grad=True), torch.ones(16, 16, 3, 3, requires_grad=True)
        for layout in (torch.contiguous_format, torch.channels_last):
            y = functional.conv2d(x.contiguous(memory_format=layout), weight)
            functional.avg_pool2d(functional.max_pool2d(y, 3), 2).sum().backward()

    call_everything()
    assert 2.0**-1073 != 0 and not flushes()
    try:
        torch.set_flush_denormal(True)
        mine = torch.full((1,), 2.0**-140) * 1.0
        call_everything()
        assert mine == 0 and (torch.full((1,), 2.0**-140) * 1.0) == 0
    finally:
        torch.set_flush_denormal(False)
    assert 2.0**-1073 != 0 and not flushes()


LANES = 34  # more than any vector has, of any dtype


def spread(problem: Problem, pair: list[torch.Tensor], which: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a NaN of operand ``which`` must be found in the result, and where it may be.

    Beside the products it is a factor of, a filter's NaN may meet the zeros of a padding, which kernels multiply or
    leave out (so do torch's); then the whole channel may hold NaN. The same for dy in the gradient of the filter.
    """
    marked = [t.isnan().double() if i == which else torch.ones_like(t) for i, t in enumerate(pair)]
    must = reference.conv2d(problem, **dict(zip(inputs.operand_names(problem), marked, strict=True))) > 0
    if which == 0:
        return must, must
    channel = 0 if problem.pass_ == "wgrad" else 1
    others = [d for d in range(4) if d != channel]
    return must, must.amax(others, keepdim=True).expand_as(must)


@pytest.mark.parametrize("kernel", [k for k in CONVS if not k.spreads_nan], ids=lambda k: k.name)
def test_a_nan_in_each_lane_spreads_as_the_definition_says(kernel):
    """Into the sums it is a part of and no other, wherever it stands in a register."""
    for problem in accepted(kernel, dtypes=("f32",)):
        operands = inputs.make(problem, 0, integer=True)
        names = inputs.operand_names(problem)
        pair = [operands.first.clone(), operands.second.clone()]
        clean = reference.conv2d(problem, **dict(zip(names, pair, strict=True))).float()
        for which, t in enumerate(pair):
            memory = t.as_strided((t.numel(),), (1,))  # in the order of the addresses
            for lane in range(min(LANES, t.numel())):
                before = memory[-1 - lane].item()
                memory[-1 - lane] = torch.nan
                out = run_guarded(kernel, problem, inputs.Operands(*pair, None, None), threads=1 + lane % 2)
                must, may = spread(problem, pair, which)
                text = f"{problem}, {names[which]}, {lane} from the end"
                assert not (must & ~out.isnan()).any() and not (out.isnan() & ~may).any(), text
                assert torch.equal(torch.where(out.isnan(), clean, out), clean), text
                memory[-1 - lane] = before


@pytest.mark.parametrize("kernel", [k for k in POOLS if "avg" in k.op], ids=lambda k: k.name)
def test_a_nan_in_each_lane_of_an_average(kernel):
    texts = ("avgpool2d_n1c19h5w37_r3s2_u2x1_p1_f32nhwc", "adaptiveavg2d_n1c19h7w37_o3x5_f32nhwc",
             "adaptiveavg2d_n1c37h4w19_o1x1_f32nhwc", "avgpool2d_n1c3h7w37_r3s3_u2_p1_f32nhwc_nopad")  # fmt: skip
    for problem in accepted(kernel, texts, ("f32",)):
        fprop, format = problem.pass_ == "fprop", inputs.memory_format(problem)
        sizes = inputs.shapes(problem)
        given, wanted = (sizes["x"], sizes["y"]) if fprop else (sizes["y"], sizes["x"])
        t = torch.randint(-2, 3, given).float().contiguous(memory_format=format)
        memory = t.as_strided((t.numel(),), (1,))
        for lane in range(min(LANES, t.numel())):
            before = memory[lane].item()
            memory[lane] = torch.nan
            out = torch.empty(wanted).contiguous(memory_format=format)
            kernel.run(problem, out=out, **{"x" if fprop else "y": t})
            exact = (reference_pool.average if fprop else reference_pool.average_gradient)(problem, t)
            assert torch.equal(out.isnan(), exact.isnan()), f"{problem}, lane {lane}"
            memory[lane] = before


BIG = (65535, 65536, 65537)


def big_problems(n: int):
    """N, C, K, H or W of size n, of every kind of convolution."""
    for text in (
        "n{n}c3h2w3_k2r1s2_f32nhwc", "n1c{n}h2w3_k2r1s2_f32nhwc", "n1c2h2w3_k{n}r1s2_f32nhwc",
        "n1c3h{n}w2_k2r3s1_p1x0_f32nhwc", "n1c3h2w{n}_k2r1s3_p0x1_f32nhwc",
        "n{n}c2h2w3_k2r1s2_g2_f32nhwc", "n1c{n}h3w2_k{n}r3s1_p1x0_g{n}_f32nhwc",
        "n1c3h{n}w2_k3r3s1_p1x0_g3_f32nhwc", "n1c3h2w{n}_k3r1s3_p0x1_g3_f32nhwc",
        "n1c16h{n}w3_k8r3s3_p1_f32nhwc", "n1c16h3w{n}_k8r3s3_p1_f32nhwc",
        "n1c3h{n}w2_k2r3s1_u2x1_p1x0_f32nhwc", "n1c3h2w{n}_k2r1s3_u1x2_p0x1_f32nhwc",
    ):  # fmt: skip
        yield text.format(n=n)


@pytest.mark.parametrize("n", BIG)
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_sizes_around_two_to_the_sixteenth(pass_, n):
    """The widest kernel of every algorithm that accepts the problem, exactly."""
    done = set()
    for i, text in enumerate(big_problems(n)):
        seen = set()
        for kernel in CONVS:
            algorithm = kernel.name.rsplit("_", 1)[0]
            dtype = "bf16" if kernel.algorithm in tolerances.OF_BFLOAT16 else "f32"
            for problem in accepted(kernel, (text,), (dtype,)):
                if kernel.pass_ == pass_ and (algorithm, problem.layout) not in seen:
                    seen.add((algorithm, problem.layout))
                    check_conv(kernel, problem, seed=i, threads=2)
        done |= seen
    small = ("direct",)  # refuses anything of this size
    assert {name for name, _ in done} >= {
        k.name.rsplit("_", 1)[0] for k in CONVS if k.pass_ == pass_ and k.algorithm not in small and not k.spreads_nan
    }


@pytest.mark.parametrize("n", BIG)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pools_of_sizes_around_two_to_the_sixteenth(layout, n):
    F, torchs = functional, torch.nn.functional
    for shape in ((n, 2, 2, 3), (1, n, 2, 3), (1, 2, n, 3), (1, 2, 3, n)):
        x = torch.randint(-9, 9, shape).float()
        x = x.contiguous(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)
        for call in (
            lambda m, x: m.max_pool2d(x, 2, 1),
            lambda m, x: m.max_pool2d(x, 2, return_indices=True)[1].float(),
            lambda m, x: m.avg_pool2d(x, 2, 1),
            lambda m, x: m.adaptive_avg_pool2d(x, (2, 1)),
            lambda m, x: m.adaptive_max_pool2d(x, (1, 2)),
        ):
            torch.testing.assert_close(call(F, x), call(torchs, x), msg=lambda m, s=shape: f"{s}: {m}")
            ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
            call(F, ours).square().sum().backward() if call(F, ours).requires_grad else None
            call(torchs, theirs).square().sum().backward() if call(torchs, theirs).requires_grad else None
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad)
