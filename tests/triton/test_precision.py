"""Floats are multiplied exactly where torch's switches say so, and in every product whose problem is not TF32."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="triton is not installed")

from fastconv.functional.fused import kind_of
from fastconv.kernels import triton as rows
from fastconv.problem import Problem
from fastconv.testing import blank

CUDNN = torch.backends.cudnn
MATMUL = torch.backends.cuda.matmul
# Every switch that a setting here reaches, in an order that puts all back: an older name sets newer ones, and a whole
# stands before its parts.
SWITCHES = (
    (torch.backends, "fp32_precision"),
    (MATMUL, "allow_tf32"),
    (MATMUL, "fp32_precision"),
    (CUDNN, "allow_tf32"),
    (CUDNN, "fp32_precision"),
    (CUDNN.conv, "fp32_precision"),
    (CUDNN.rnn, "fp32_precision"),
)
# What a user may set -> whether convolutions may be rounded. The first two are torch's older names.
SETTINGS = {
    "allowed": ({"allow_tf32": True}, "tf32"),
    "not allowed": ({"allow_tf32": False}, "f32"),
    "convolutions exact": ({"conv": "ieee"}, "f32"),
    "convolutions rounded": ({"conv": "tf32"}, "tf32"),
    "recurrences exact": ({"rnn": "ieee", "conv": "tf32"}, "tf32"),
    "all exact": ({"all": "ieee"}, "f32"),
}


def switches() -> list:
    return [getattr(owner, name) for owner, name in SWITCHES]


@pytest.fixture(autouse=True)
def precision():
    """Puts torch's switches back. torch's own test helpers, where another test loaded them, forbid to set any."""
    before = switches()
    with torch.backends.__allow_nonbracketed_mutation():
        yield
        for (owner, name), value in zip(SWITCHES, before, strict=True):
            setattr(owner, name, value)
    assert switches() == before


@pytest.mark.parametrize("name", SETTINGS)
def test_fused_functions_obey_torchs_switches(name):
    setting, expected = SETTINGS[name]
    if "allow_tf32" in setting:
        CUDNN.allow_tf32 = setting["allow_tf32"]
    else:
        CUDNN.conv.fp32_precision = CUDNN.rnn.fp32_precision = "none"
        for part, value in setting.items():
            {"conv": CUDNN.conv, "rnn": CUDNN.rnn, "all": torch.backends}[part].fp32_precision = value
    with FakeTensorMode():
        shape, nhwc = (2, 3, 4, 5), torch.channels_last
        assert kind_of(torch.empty(shape, device="cuda")) == f"{expected}nchw"
        assert kind_of(torch.empty(shape, device="cuda", memory_format=nhwc)) == f"{expected}nhwc"
        assert kind_of(torch.empty(shape, device="cuda", dtype=torch.float16)) == "f16nchw"
    assert kind_of(torch.empty(shape)) == "f32nchw"  # there is no TF32 on the CPU


PRODUCTS = {
    "conv_fprop": "n2c8h6w5_k16r3s3_p1_{}nhwc",
    "conv_dgrad": "n2c8h6w5_k16r3s3_p1_{}nhwc_dgrad",
    "conv_wgrad": "n2c8h6w5_k16r3s3_p1_{}nhwc_wgrad",
    "conv_gemm1x1": "n2c8h6w5_k16r1s1_{}nhwc",
    "conv_persistent1x1": "n2c8h6w5_k16r1s1_{}nhwc",
    "conv_persistent": "n2c8h6w5_k16r3s3_p1_{}nhwc",
    "conv_boxes_wgrad": "n2c8h6w5_k16r3s3_p1_{}nhwc_wgrad",
    "dw_pw": "n2c8h6w5_k16r1s1_{}nhwc",
}


@pytest.mark.parametrize(("dtype", "expected"), [("f32", "ieee"), ("tf32", "tf32")])
@pytest.mark.parametrize("file", PRODUCTS)
def test_every_product_multiplies_as_its_problem_says(file, dtype, expected):
    problem, module = Problem(PRODUCTS[file].format(dtype)), rows.load(file)
    operands = blank.operands(problem)
    if file == "dw_pw":
        first = Problem(f"n2c8h6w5_k8r3s3_p1_g8_{dtype}nhwc")
        operands = {"x": operands["x"], "filter": operands["w"], "w": blank.operands(first)["w"]}
        launch = module.plan(first, problem, architecture=90, **operands)[1][0]
    else:
        launch = module.plan(problem, architecture=90, **operands)[1][0]
    assert launch.arguments["PRECISION"] == expected
