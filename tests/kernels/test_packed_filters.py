"""Filters packed apart from the call: the bits are those of a call that packs for itself, and problems share forms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastconv import registry
from fastconv._native import C
from fastconv.problem import Problem
from fastconv.testing import corpus, guard, inputs
from fastconv.testing.check import run_guarded

DTYPES = ("f32", "f64", "f16", "bf16")
PACKING = ("winograd2", "winograd4", "winograd2r5", "igemm", "pairs", "stem", "depthwise", "grouped", "phases")
KERNELS = [
    k
    for k in registry.kernels()
    if k.op == "conv2d" and k.native is not None and k.pass_ != "wgrad" and k.algorithm in PACKING
]
BY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)


def pack(kernel, problem: Problem, w: torch.Tensor, fill: int = guard.POISON) -> torch.Tensor:
    """The packed filter between halos; AssertionError when packing wrote into them."""
    size, _ = C.packed_form(kernel.native, problem)
    packed = guard.guarded_bytes(size)
    packed.fill_(fill)
    C.pack(kernel.native, problem, w, packed)
    whole = packed.as_strided((size + 2 * guard.HALO_BYTES,), (1,), 0)
    halos = torch.cat([whole[: guard.HALO_BYTES], whole[guard.HALO_BYTES + size :]])
    assert (halos == guard.POISON).all(), "Packing wrote outside the packed filter."
    return packed


def run_packed(kernel, problem: Problem, operands, like: Problem | None = None, **options) -> torch.Tensor:
    """The result of a packed problem; the filter is packed for `like`, by default for the problem itself."""

    def run(problem, *, w, **tensors):
        packed = pack(kernel, (like or problem).replace(packed=True), w)
        kernel.run(problem, packed=packed, **tensors)

    return run_guarded(SimpleNamespace(run=run), problem.replace(packed=True), operands, **options)


def problems(kernel, dtype: str):
    """Those of the edge corpus that the kernel takes, every second with a whole epilogue."""
    for i, base in enumerate(corpus.load("edge_conv")):
        changes = {"pass_": kernel.pass_, "dtype": dtype}
        if i % 4 > 1:
            changes["layout"] = "nchw"
        if base.out_channels:
            changes |= {"out_channels": max(base.c, base.k) + base.out_offset + 5}
        elif i % 2:
            changes |= {"bias": True, "residual": True, "activation": "relu"}
        problem = base.replace(**changes)
        if kernel.refuses(problem) is None:
            yield i, problem


@pytest.mark.parametrize("dtype", DTYPES)
@BY_KERNEL
def test_packed_filters_give_the_same_bits(kernel, dtype):
    """As the same kernel gives when it packs in the call, whatever the strides of the filter; no byte is left out."""
    for i, problem in problems(kernel, dtype):
        assert kernel.refuses(problem.replace(packed=True)) is None
        operands = inputs.make(problem, i, integer=False)
        options = {"weight_channels_last": i % 3 == 0, "weight_gap": i % 3 == 1, "threads": (0, 1, 3)[i % 3]}
        wanted = run_guarded(kernel, problem, operands, **options)
        got = run_packed(kernel, problem, operands, **options)
        assert torch.equal(got, wanted), str(problem)
        p = problem.replace(packed=True)
        first, second = pack(kernel, p, operands.second), pack(kernel, p, operands.second, fill=0)
        assert torch.equal(first, second), f"{problem}: packing left bytes as they were."


SHARED = [
    "n1c37h9w8_k50r3s3_p1_f32nhwc",
    "n1c600h6w7_k40r3s3_p1_f32nhwc",
    "n1c3h19w23_k40r7s7_u2_p3_f32nhwc",
    "n1c33h9w8_k33r3s3_p1_g33_f32nhwc",
    "n1c20h11w13_k40r3s3_u2_p1_g5_f32nhwc",
    "n1c40h11w13_k70r3s3_u2_p1_f32nhwc",
    "n1c6h11w13_k70r4s4_u2_p1_f32nhwc",
]


@pytest.mark.parametrize("text", SHARED)
@BY_KERNEL
def test_forms_do_not_hang_on_the_batch_or_the_map(kernel, text):
    """A filter packed for one image is that of three and of a larger map, byte by byte, and runs there."""
    one = Problem(text).replace(pass_=kernel.pass_, dtype="bf16" if kernel.algorithm == "pairs" else "f32")
    grown = str(one).replace("h9w8", "h33w38").replace("h11w13", "h41w43").replace("h6w7", "h30w21")
    for other in (one.replace(n=3), Problem(grown)):
        if kernel.refuses(one) or kernel.refuses(other):
            continue
        packed_one, packed_other = one.replace(packed=True), other.replace(packed=True)
        form = C.packed_form(kernel.native, packed_one)
        assert form == C.packed_form(kernel.native, packed_other)
        operands = inputs.make(other, 1, integer=False)
        ours, theirs = (pack(kernel, p, operands.second) for p in (packed_one, packed_other))
        assert torch.equal(ours, theirs)
        got = run_packed(kernel, other, operands, like=one)
        assert torch.equal(got, run_guarded(kernel, other, operands))


@BY_KERNEL
def test_variants_name_what_decides_the_form(kernel):
    """igemm's chunks hang on the result's size, the order of phases on stride and dilation."""
    if kernel.algorithm == "igemm":
        small = Problem("n1c512h14w14_k512r3s3_p1_f32nhwc_packed").replace(pass_=kernel.pass_)
        large = small.replace(n=128)
    elif kernel.algorithm == "phases":
        small = Problem("n1c32h14w14_k40r3s3_u2_p1_f32nhwc_packed").replace(pass_="dgrad")
        large = Problem("n1c32h14w14_k40r3s3_u3_p1_f32nhwc_packed").replace(pass_="dgrad")
    else:
        pytest.skip("Channels, window, groups and dtype decide its form.")
    forms = [C.packed_form(kernel.native, p) for p in (small, large)]
    assert forms[0][0] == forms[1][0] and forms[0][1] != forms[1][1]
    assert C.packed_form(kernel.native, small) == C.packed_form(kernel.native, small.replace(n=2))


def test_other_kernels_read_the_filter_as_it_is():
    """Direct sums, dot and im2col refuse packed problems in a sentence, and have no form."""
    problem = Problem("n1c8h5w6_k8r1s1_f32nhwc_packed")
    others = [k for k in registry.kernels() if k.op == "conv2d" and k.native is not None and k not in KERNELS]
    assert others
    for kernel in others:
        assert C.packed_form(kernel.native, problem) is None
        if kernel.pass_ != "wgrad":
            assert "reads the filter as it is" in kernel.refuses(problem.replace(pass_=kernel.pass_))


def test_every_packing_kernel_is_reached():
    """The corpus holds problems for each algorithm that packs."""
    reached = {k.algorithm for k in KERNELS for dtype in ("f32", "bf16") if next(problems(k, dtype), None)}
    assert reached >= set(PACKING) - {"pairs"}
