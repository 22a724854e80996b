"""Every native convolution kernel on every problem of the edge corpus it accepts: pass x layout x dtype."""

from __future__ import annotations

import pytest

from fastconv import registry
from fastconv.testing import corpus
from fastconv.testing.check import check_conv

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("f32", "f64", "f16", "bf16")
KERNELS = [k for k in registry.kernels() if k.op == "conv2d" and k.native is not None]


def problems(kernel, dtype):
    for base in corpus.load("edge_conv"):
        for layout in LAYOUTS:
            changes = {"pass_": kernel.pass_, "layout": layout, "dtype": dtype}
            if kernel.pass_ == "wgrad":
                changes |= {
                    "bias": False,
                    "residual": False,
                    "activation": "none",
                    "out_channels": 0,
                    "out_offset": 0,
                }
            elif kernel.pass_ == "dgrad" and base.out_channels:
                changes |= {"out_channels": base.c + base.out_offset + 5}
            problem = base.replace(**changes)
            if kernel.refuses(problem) is None:
                yield problem


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_kernel_agrees_with_the_oracle(kernel, dtype):
    """Integer-exact equality and the bound on real values, at changing offsets, weight layouts and thread counts."""
    for i, problem in enumerate(problems(kernel, dtype)):
        for integer in (True, False):
            try:
                check_conv(
                    kernel,
                    problem,
                    seed=i,
                    integer=integer,
                    offset=i % 16,
                    weight_channels_last=bool(i % 2),
                    weight_gap=(0, 0, 1)[i % 3],
                    threads=(0, 1, 3)[i % 3],
                )
            except AssertionError as error:
                raise AssertionError(f"{kernel.name} on {problem}, integer={integer}: {error}") from None


def test_every_kernel_accepts_a_problem():
    """A kernel that accepts nothing, in any dtype, is dead code."""
    runnable = [k for k in KERNELS if "no avx" not in (k.refuses(next(iter(corpus.load("edge_conv")))) or "").lower()]
    for kernel in runnable:
        assert any(True for dtype in DTYPES for _ in problems(kernel, dtype)), kernel.name
