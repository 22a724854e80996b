"""Edges of the direct kernels for few channels: what the corpora of small problems do not reach, in the emulator."""

from __future__ import annotations

import math

import pytest
import torch

from fastconv.problem import Problem
from fastconv.testing import emulator, inputs
from fastconv.testing.gpu_cases import check

# Rows of whole chunks, read by cp.async: paddings that shift a row's first tap by every parity, odd strides, dilated
# rows, several tiles a block, two layers of filters, filters too large for 64 at once.
STEMS = (
    "n2c3h40w48_k66r7s7_u2_p3_{}nhwc_bias_relu",
    "n1c3h21w40_k35r3s3_p1_{}nhwc_res",
    "n1c3h19w16_k8r3s2_u1x2_p1x0_d2x1_{}nhwc",
    "n2c1h18w32_k40r5s4_u3_p2x3_{}nhwc_bias_out3of50",
    "n1c3h23w24_k70r11s11_u4_p2_{}nhwc",
)


@pytest.mark.parametrize("dtype", ["f32", "tf32", "bf16"])
@pytest.mark.parametrize("text", STEMS)
def test_stems_in_chunks(text, dtype):
    """Aligned, and off alignment."""
    problem = Problem(text.format(dtype))
    kernel = emulator.kernel(f"conv2d/fprop_stem_{'simt' if dtype == 'f32' else 'sm80'}")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=True)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["f32", "tf32", "bf16"])
@pytest.mark.parametrize("column", [3, 4, 5])
def test_what_a_stems_depth_is_padded_with_reaches_nothing(column, dtype, layout):
    """An infinite pixel makes those outputs infinite whose taps it lies under, and no other NaN or infinite."""
    problem = Problem(f"n1c3h5w16_k8r2s3_p0x1_{dtype}{layout}")
    x = torch.ones(1, 3, 5, 16)
    x[..., column] = math.inf
    w = torch.ones(8, 3, 2, 3)
    stored, format = inputs.DTYPES[dtype], inputs.memory_format(problem)
    out = torch.zeros(inputs.shapes(problem)["y"], dtype=stored).contiguous(memory_format=format)
    kernel = emulator.kernel(f"conv2d/fprop_stem_{'simt' if dtype == 'f32' else 'sm80'}")
    kernel.run(problem, out=out, x=x.to(stored).contiguous(memory_format=format), w=w.to(stored))
    reached = torch.zeros(16, dtype=torch.bool)
    reached[column - 1 : column + 2] = True
    assert torch.equal(out.isinf(), reached.expand(out.shape)) and not out.isnan().any()
