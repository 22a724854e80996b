"""PyTorch's own samples of its convolutions, run on ours: values, dtypes, strides, gradients, errors."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("expecttest")
from torch.testing._internal.common_methods_invocations import op_db

from fastconv import config, functional

NAMES = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
OPS = {op.name.rsplit(".", 1)[1]: op for op in op_db if op.name in [f"nn.functional.{name}" for name in NAMES]}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def results(function, sample, differentiate: bool):
    tensors = [sample.input, *(a for a in (*sample.args, *sample.kwargs.values()) if isinstance(a, torch.Tensor))]
    leaves = [t.detach().requires_grad_(differentiate) for t in tensors]
    it = iter(leaves)
    input = next(it)
    args = [next(it) if isinstance(a, torch.Tensor) else a for a in sample.args]
    kwargs = {k: next(it) if isinstance(a, torch.Tensor) else a for k, a in sample.kwargs.items()}
    y = function(input, *args, **kwargs)
    if not differentiate:
        return [y]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, grad)]


def test_all_four_are_there():
    assert sorted(OPS) == sorted(NAMES)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("differentiate", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize("lying", ["as_they_are", "noncontiguous"])
@pytest.mark.parametrize("name", NAMES)
def test_samples(name, lying, differentiate, dtype):
    torch.manual_seed(0)
    count = 0
    for sample in OPS[name].sample_inputs("cpu", dtype, requires_grad=False):
        sample = sample.noncontiguous() if lying == "noncontiguous" else sample
        theirs = results(getattr(torch.nn.functional, name), sample, differentiate)
        with config(kernel="-*_aten"):
            ours = results(getattr(functional, name), sample, differentiate)
        for what, a, b in zip(("y", "dx", "dw", "db"), ours, theirs, strict=False):
            text = f"{what} of {sample}"
            assert a.dtype == b.dtype and a.shape == b.shape, text
            assert a.stride() == b.stride(), f"{text}: {a.stride()} for torch's {b.stride()}"
            size = max(1.0, b.abs().max().item()) if b.numel() else 1.0
            torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[dtype] * size, msg=lambda m, t=text: f"{t}: {m}")
        count += 1
    assert count > 3


@pytest.mark.parametrize("name", NAMES)
def test_error_inputs(name):
    op = OPS[name]
    if op.error_inputs_func is None:
        assert "transpose" in name  # tests/ops/test_bad_input.py has them
        return
    for error in op.error_inputs("cpu"):
        sample = error.sample_input
        with pytest.raises(error.error_type):
            getattr(functional, name)(sample.input, *sample.args, **sample.kwargs)
