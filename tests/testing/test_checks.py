"""The checks themselves: each kind of wrong kernel is caught, by the sentence that names its fault."""

from __future__ import annotations

import pytest
import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import fuzz, guard
from fastconv.testing.check import check_conv
from fastconv.testing.check_pool import check_pool

CONV = Problem("n1c3h5w6_k4r3s2_p1_f32nhwc")
POOL = Problem("maxpool2d_n1c3h5w6_r3s2_u2_p1_f32nhwc_indexi64")


def broken(name: str, op: str, change) -> Kernel:
    """The reference kernel with ``change(out, tensors)`` after it."""
    honest = registry.kernel(name)

    def run(problem, *, out, threads=0, **tensors):
        honest.run(problem, out=out, threads=threads, **tensors)
        change(out, tensors)
        return out

    return Kernel(f"{op}/fprop_broken_scalar", op, "fprop", ("cpu",), lambda p: None, run, native=0)


def beyond(t: torch.Tensor, offset: int) -> torch.Tensor:
    """One element outside a tensor's own memory: ``offset`` before its first, or behind its last."""
    at = t.storage_offset() + (offset if offset < 0 else t.numel() - 1 + offset)
    return t.as_strided((1,), (1,), at)


CONV_FAULTS = {
    "larger": (lambda out, _: out[0, 1, 2, 3].add_(1), "1 of 140 elements differ"),
    "smaller": (lambda out, _: out[0, 1, 2, 3].sub_(1), "1 of 140 elements differ"),
    "unwritten": (lambda out, _: out[0, 3, 4, 2].fill_(torch.nan), "1 elements were not written"),
    "before": (lambda out, _: beyond(out, -1).zero_(), "1 elements outside the output changed"),
    "behind": (lambda out, _: beyond(out, 1).zero_(), "1 elements outside the output changed"),
    "far_behind": (lambda out, _: beyond(out, guard.HALO).zero_(), "1 elements outside the output changed"),
    "overread": (lambda out, t: out.add_(0 * beyond(t["x"], 1)), "elements were not written or read outside"),
}


@pytest.mark.parametrize("fault", CONV_FAULTS)
@pytest.mark.parametrize("offset", [0, 3])
def test_a_wrong_convolution_is_caught(fault, offset):
    change, sentence = CONV_FAULTS[fault]
    with pytest.raises(AssertionError, match=sentence):
        check_conv(broken("conv2d/fprop_reference_scalar", "conv2d", change), CONV, offset=offset)
    check_conv(registry.kernel("conv2d/fprop_reference_scalar"), CONV, offset=offset)


def test_a_wrong_convolution_of_real_values_is_caught():
    for change in (lambda out, _: out.mul_(1 + 2e-5), lambda out, _: out[0, 0, 0].add_(1e-4)):
        with pytest.raises(AssertionError, match="exceeds the bound"):
            check_conv(broken("conv2d/fprop_reference_scalar", "conv2d", change), CONV, integer=False)


def test_writing_into_the_channels_beside_a_slice_is_caught():
    sliced = CONV.replace(out_offset=2, out_channels=8)
    for channel in (1, 6):
        kernel = broken("conv2d/fprop_reference_scalar", "conv2d", lambda out, _, c=channel: out[0, c, 1, 1].zero_())
        with pytest.raises(AssertionError, match="outside the output changed"):
            check_conv(kernel, sliced)


POOL_FAULTS = {
    "larger": (lambda out, _: out[0, 1, 2, 1].add_(1), "1 of 36 elements of the value differ"),
    "sign_of_zero": (lambda out, _: out.copy_(torch.where(out == 0, -out, out)), "of the value differ"),
    "index": (lambda out, t: t["index"][0, 1, 2, 1].sub_(1), "1 of 36 elements of the index differ"),
    "index_outside": (lambda out, t: t["index"][0, 1, 2, 1].fill_(30), "points outside"),
    "index_written_behind": (lambda out, t: beyond(t["index"], 1).zero_(), "outside the output changed"),
    "behind": (lambda out, _: beyond(out, 1).zero_(), "outside the output changed"),
}


@pytest.mark.parametrize("fault", POOL_FAULTS)
def test_a_wrong_pool_is_caught(fault):
    change, sentence = POOL_FAULTS[fault]
    with pytest.raises(AssertionError, match=sentence):
        check_pool(broken("maxpool2d/fprop_reference_scalar", "maxpool2d", change), POOL, kind="ties")
    check_pool(registry.kernel("maxpool2d/fprop_reference_scalar"), POOL, kind="ties")


def test_the_fuzzer_says_how_to_repeat_a_failure(monkeypatch):
    row = broken("conv2d/fprop_reference_scalar", "conv2d", lambda out, _: out.add_(1))
    monkeypatch.setattr(registry, "kernels", lambda: (row,))
    with pytest.raises(
        AssertionError, match=r"Repeat with: check_conv\(registry\.kernel\('conv2d/fprop_broken_scalar'\)"
    ):
        fuzz.fuzz(20, kernels="broken")
