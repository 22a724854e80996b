"""Every native pooling kernel on every problem of the edge corpus it accepts: pass x layout x dtype x index kind."""

from __future__ import annotations

import pytest
import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.testing import corpus
from fastconv.testing.check_pool import KINDS, check_pool

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("f32", "f64", "f16", "bf16")
KERNELS = [k for k in registry.kernels() if ("pool" in k.op or "adaptive" in k.op) and k.native is not None]
INDICES = {"unpool2d": ("i64",), "maxpool2d": ("none", "u8", "i64"), "adaptivemax2d": ("none", "i64")}


def problems(kernel, dtype):
    for base in corpus.load("edge_pool"):
        for layout in LAYOUTS:
            for index in INDICES.get(base.op, ("none",)):
                problem = base.replace(pass_=kernel.pass_, layout=layout, dtype=dtype, index=index)
                if kernel.computes(problem) and kernel.refuses(problem) is None:
                    yield problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernel_agrees_with_the_oracle(kernel, dtype):
    """Maxima and indices to the last bit, NaN and ties included; sums within the bound; any offset and thread count."""
    found = 0
    for i, problem in enumerate(problems(kernel, dtype)):
        for kind in KINDS:
            if kind == "special" and (problem.pass_ == "dgrad" or "avg" in problem.op):
                continue
            found += 1
            try:
                check_pool(kernel, problem, kind=kind, seed=i, offset=i % 16, threads=(0, 1, 3)[i % 3])
            except AssertionError as error:
                raise AssertionError(f"{kernel.name} on {problem}, {kind}: {error}") from None
    assert found or "no avx" in (kernel.refuses(Problem("n1c1h1w1_k1r1s1_f32nhwc")) or "").lower()


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_threads_do_not_change_the_result(kernel):
    """One, two and five threads give the same bits."""
    for problem in problems(kernel, "f32"):
        shape = (
            problem.n,
            problem.c,
            *((problem.h.out, problem.w.out) if kernel.pass_ == "dgrad" else (problem.h.size, problem.w.size)),
        )
        written = (
            problem.n,
            problem.c,
            *((problem.h.size, problem.w.size) if kernel.pass_ == "dgrad" else (problem.h.out, problem.w.out)),
        )
        format = torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format
        operand = {"y" if kernel.pass_ == "dgrad" else "x": torch.randn(shape).contiguous(memory_format=format)}
        results = []
        for threads in (1, 2, 5):
            if problem.index != "none":
                small = shape if kernel.pass_ == "dgrad" or problem.op == "unpool2d" else written
                small = written if problem.op == "unpool2d" and kernel.pass_ == "dgrad" else small
                operand["index"] = torch.zeros(
                    small, dtype={"u8": torch.uint8, "i64": torch.int64}[problem.index]
                ).contiguous(memory_format=format)
            buffer = (written[0], problem.out_channels or written[1], *written[2:])
            out = torch.zeros(buffer).contiguous(memory_format=format)
            results.append(kernel.run(problem, out=out, threads=threads, **operand))
        assert all(torch.equal(results[0], other) for other in results[1:]), f"{kernel.name} on {problem}"


def test_a_stride_of_eight_is_not_an_index():
    """Every problem's text reads back as the same problem."""
    for problem in [*corpus.load("edge_pool"), Problem("n1c2h64w64_k3r16s16_u8_f32nhwc")]:
        for index in ("none", "u8", "i64"):
            changed = problem.replace(index=index)
            assert Problem(str(changed)) == changed
    assert Problem("n1c2h64w64_k3r16s16_u8_f32nhwc").h.stride == 8


def test_refusals_are_sentences():
    """A pool that no row can run says why, with the values in it."""
    kernel = registry.kernel("maxpool2d/dgrad_window_scalar")
    assert "needs an index" in kernel.refuses(Problem("maxpool2d_n1c1h9w9_r2s2_f32nhwc_dgrad"))
    wide = registry.kernel("maxpool2d/fprop_reference_scalar")
    assert "R·S=272" in wide.refuses(Problem("maxpool2d_n1c1h29w29_r16s17_f32nhwc_indexu8"))
