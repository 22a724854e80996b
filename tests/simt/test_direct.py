"""Edges of the direct kernels for few channels, in all or in a group: what the corpora of small problems do not reach,
in the emulator.
"""

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


@pytest.mark.parametrize("dtype", ["f32", "tf32", "bf16"])
@pytest.mark.parametrize("text", [text.split("_bias")[0].split("_res")[0] for text in STEMS])
def test_weight_gradients_of_stems_in_chunks(text, dtype):
    """Each width of a block, in parts, aligned and off alignment."""
    problem = Problem(text.format(dtype)).replace(pass_="wgrad")
    kernel = emulator.kernel(f"conv2d/wgrad_stem_{'simt' if dtype == 'f32' else 'sm80'}")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=True)


@pytest.mark.parametrize("dtype", ["f32", "tf32", "bf16"])
def test_weight_gradients_of_stems_end_with_the_outputs(dtype):
    """Three outputs reach seven of eight columns, two reach five of six rows; what is infinite behind them reaches no
    gradient.
    """
    problem = Problem(f"n2c3h6w8_k8r3s3_u2_{dtype}nhwc_wgrad")
    tensors = inputs.make(problem, 3, integer=True).named(problem)
    tensors["x"][..., 7] = tensors["x"][:, :, 5] = math.inf
    out = torch.zeros(inputs.shapes(problem)["w"], dtype=inputs.DTYPES[dtype])
    kernel = emulator.kernel(f"conv2d/wgrad_stem_{'simt' if dtype == 'f32' else 'sm80'}")
    assert kernel.run(problem, out=out, **tensors).isfinite().all()


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


# Slabs of several groups, the last one shorter; several tiles; pairs of chunks and single elements; both numbers of
# columns; phases of a gradient with unlike numbers of taps.
GROUPS = (
    "n2c48h11w19_k48r3s3_p1_g12_{}nhwc",
    "n1c40h17w10_k80r3s2_u2x1_p1x0_g10_{}nhwc",
    "n1c36h9w21_k24r2s3_u1x3_d2x1_p1_g12_{}nhwc",
    "n1c72h9w18_k36r3s3_u2_p1_g6_{}nchw",
)


@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16"])
@pytest.mark.parametrize("text", GROUPS)
def test_groups_in_slabs(text, dtype, pass_):
    """Aligned, and off alignment."""
    problem = Problem(text.format(dtype)).replace(pass_=pass_, bias=True, activation="relu")
    kernel = emulator.kernel(f"gconv2d/{pass_}_grouped_{'simt' if dtype == 'f32' else 'sm80'}")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=True)


# Besides: one product a warp, five and nine; several layers of them; eights that lie across groups; groups that are
# several eights.
GROUP_GRADIENTS = (
    *GROUPS,
    "n5c64h9w19_k32r1s1_g16_{}nhwc",
    "n3c36h17w18_k48r3s2_p1_g6_{}nhwc",
    "n1c62h9w17_k62r2s3_p0x1_g2_{}nhwc",
    "n1c32h13w9_k64r5s4_p2x1_g2_{}nhwc",
)


@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16"])
@pytest.mark.parametrize("text", GROUP_GRADIENTS)
def test_weight_gradients_of_groups_in_slabs(text, dtype):
    """Aligned, and off alignment."""
    problem = Problem(text.format(dtype)).replace(pass_="wgrad")
    kernel = emulator.kernel(f"gconv2d/wgrad_grouped_{'simt' if dtype == 'f32' else 'sm80'}")
    check(kernel, problem, 0, integer=True)
    check(kernel, problem, 5, integer=True)


@pytest.mark.parametrize("dtype", ["f32", "tf32", "bf16"])
def test_weight_gradients_of_groups_end_with_the_outputs(dtype):
    """Three outputs reach seven of eight columns, two reach five of six rows; what is infinite behind them reaches no
    gradient, and what is infinite in one group none of another's.
    """
    problem = Problem(f"n2c12h6w8_k8r3s3_u2_g4_{dtype}nhwc_wgrad")
    tensors = inputs.make(problem, 3, integer=True).named(problem)
    tensors["x"][..., 7] = tensors["x"][:, :, 5] = math.inf
    tensors["x"][:, 3:6] = math.inf
    out = torch.zeros(inputs.shapes(problem)["w"], dtype=inputs.DTYPES[dtype])
    kernel = emulator.kernel(f"gconv2d/wgrad_grouped_{'simt' if dtype == 'f32' else 'sm80'}")
    finite = kernel.run(problem, out=out, **tensors).isfinite()
    assert not finite[2:4].any() and finite[:2].all() and finite[4:].all()


@pytest.mark.parametrize("dtype", ["f32", "tf32", "bf16"])
@pytest.mark.parametrize("channels", [3, 4])
def test_an_infinite_group_leaves_the_others_alone(channels, dtype):
    problem = Problem(f"n1c{4 * channels}h5w6_k{4 * channels}r3s2_p1x0_g4_{dtype}nhwc")
    x = torch.ones(1, 4 * channels, 5, 6)
    x[:, channels : 2 * channels] = math.inf
    w = torch.ones(4 * channels, channels, 3, 2)
    stored, format = inputs.DTYPES[dtype], inputs.memory_format(problem)
    out = torch.zeros(inputs.shapes(problem)["y"], dtype=stored).contiguous(memory_format=format)
    kernel = emulator.kernel(f"gconv2d/fprop_grouped_{'simt' if dtype == 'f32' else 'sm80'}")
    kernel.run(problem, out=out, x=x.to(stored).contiguous(memory_format=format), w=w.to(stored))
    infinite = out.isinf().all(dim=(0, 2, 3))
    assert torch.equal(infinite.nonzero()[:, 0], torch.arange(channels) + channels)
    assert not out.isnan().any()
