"""Every native kernel of what works on rows of channels: op x dtype x odd sizes and slices, guarded."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from fastconv import reference_rows, registry
from fastconv.problem import Problem
from fastconv.testing import bench, corpus, inputs, oracle
from fastconv.testing.check_rows import KINDS, case, check_rows
from fastconv.testing.norm_case import EPS

DTYPES = ("f32", "f64", "f16", "bf16")
KERNELS = [k for k in registry.kernels() if k.op in reference_rows.OPS and k.native is not None]
FAST = [k for k in KERNELS if not k.is_reference]
EDGES = list(corpus.load("edge_rows"))


def runnable(op: str) -> list:
    """The kernels of an op that this processor runs."""
    sample = next(p for p in EDGES if p.op == op)
    return [k for k in KERNELS if k.op == op and k.refuses(sample) is None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", reference_rows.OPS)
def test_kernels_agree_with_the_oracle(op, dtype):
    """NaN and infinities too; any offset and number of threads; nothing beside a slice is read or written."""
    found = Counter()
    for i, base in enumerate(p for p in EDGES if p.op == op):
        for layout in ("nhwc",) if op in ("attention", "copy2d") else ("nhwc", "nchw"):
            problem = base.replace(dtype=dtype, layout=layout)
            for kind in KINDS:
                for kernel in runnable(op):
                    if kernel.refuses(problem) is not None:
                        assert layout == "nchw" and not kernel.is_reference
                        continue
                    found[kernel.name] += 1
                    options = {"seed": i, "offset": i % 16, "threads": (0, 1, 3)[i % 3], "affine": i % 4 != 3}
                    try:
                        check_rows(kernel, problem, kind=kind, **options)
                    except AssertionError as error:
                        raise AssertionError(f"{kernel.name} on {problem}, {kind}, {options}: {error}") from None
    assert found and all(count >= 24 for count in found.values())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kernel", FAST, ids=lambda k: k.name)
def test_threads_do_not_change_the_result(kernel, dtype):
    """One, two, three and five threads give the same bits."""
    for base in (p for p in EDGES if kernel.computes(p) and p.n):
        problem = base.replace(dtype=dtype)
        if kernel.refuses(problem) is not None:
            continue
        given, results = case(problem, "normal", 0), []
        for threads in (1, 2, 3, 5):
            out = inputs.guarded_output(problem)
            kernel.run(problem, out=out.buffer, threads=threads, **given.numbers, **given.tensors)
            results.append(out.tensor)
        assert all(torch.equal(results[0], other) for other in results[1:]), str(problem)


def test_the_oracle_is_torch_s():
    """The oracle and torch mean the same functions, in float64."""
    x = case(Problem("layernorm2d_n2c17h3w5_f64nhwc"), "normal", 0).tensors
    rows = x["x"].permute(0, 2, 3, 1)
    theirs = F.layer_norm(rows, (17,), x["w"], x["bias"], EPS).permute(0, 3, 1, 2)
    ours = reference_rows.layer_norm(Problem("layernorm2d_n2c17h3w5_f64nhwc"), x["x"], x["w"], x["bias"], EPS)
    assert (ours - theirs).abs().max() < 1e-13
    ours = reference_rows.softmax(Problem("softmax2d_n2c17h3w5_f64nhwc"), x["x"])
    assert (ours - x["x"].softmax(1)).abs().max() < 1e-15
    for kind in ("normal", "special"):  # special: queries without a key, NaN
        given = case(Problem("attention_n2c64h33w1_k64r31s1_g4_f64nhwc_mask"), kind, 0)
        t, factor = given.tensors, given.numbers["factor"]
        theirs = F.scaled_dot_product_attention(t["x"], t["keys"], t["values"], t["mask"], scale=factor)
        theirs = theirs.permute(0, 1, 3, 2).flatten(1, 2)[..., None]
        assert torch.allclose(given.expected, theirs, rtol=1e-12, atol=1e-13, equal_nan=True), kind


@pytest.mark.parametrize("kernel", runnable("copy2d"), ids=lambda k: k.name)
def test_copies_read_any_strides(kernel):
    """Transposed, sliced and expanded tensors."""
    base = torch.randn(7, 6, 11, 9)
    views = [
        base.permute(0, 3, 1, 2),
        base.permute(3, 1, 2, 0),
        base[1:4, ::2, 3:, 1:8],
        base[:, :, :1].expand_as(base),
    ]
    for view in views:
        n, c, h, w = view.shape
        out = torch.empty(n, c, h, w).contiguous(memory_format=torch.channels_last)
        kernel.run(Problem(f"copy2d_n{n}c{c}h{h}w{w}_f32nhwc"), x=view, out=out)
        assert torch.equal(out, view)


@pytest.mark.parametrize("kernel", runnable("attention"), ids=lambda k: k.name)
def test_heads_lie_beside_each_other(kernel):
    """Queries, keys and values in one buffer, as one linear layer leaves them, and a mask that all images share."""
    n, tokens, heads, depth = 2, 37, 3, 20
    together = torch.randn(n, tokens, 3, heads, depth)
    x, keys, values = together.permute(2, 0, 3, 1, 4).unbind(0)
    mask = torch.randn(1, 1, tokens, tokens).expand(n, heads, tokens, tokens)
    exact = reference_rows.attention(x, keys, values, mask, 0.25)
    width = heads * depth
    out = torch.empty(n, width, tokens, 1).contiguous(memory_format=torch.channels_last)
    problem = Problem(f"attention_n{n}c{width}h{tokens}w1_k{width}r{tokens}s1_g{heads}_f32nhwc_mask")
    kernel.run(problem, x=x, keys=keys, values=values, mask=mask, factor=0.25, out=out)
    assert (out.double() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", runnable("softmax2d"), ids=lambda k: k.name)
def test_softmax_of_rows_far_below_zero(kernel):
    """Where exp alone would be zero; rows with a rest behind their registers."""
    for channels in (3, 17, 70):
        x = torch.randn(2, channels, 1, 1) - 1000
        out = kernel.run(Problem(f"softmax2d_n2c{channels}h1w1_f32nhwc"), x=x, out=torch.empty_like(x))
        assert (out.double() - x.double().softmax(1)).abs().max() < 1e-4


TEXTS = (
    "layernorm2d_n2c24h7w5_f32nhwc_in8of40",
    "softmax2d_n2c24h7w5_f32nhwc",
    "copy2d_n2c24h7w5_f32nhwc",
    "attention_n2c64h33w1_k64r31s1_g4_f32nhwc_mask",
)


@pytest.mark.parametrize("text", TEXTS)
def test_the_benchmark_knows_them(text):
    """Torch's rows beside ours, each right in its layout."""
    exact = oracle.ask(Problem(text))
    taking_part, _ = bench.entrants(Problem(text))
    assert any(e.kernel.is_torch for e in taking_part) and any(e.chosen for e in taking_part)
    for entrant in taking_part:
        tensors = bench.operand_sets(exact.tensors, entrant.problem, cold=False)[0]
        assert exact.verdict_of_call(entrant.call(tensors)(), tensors, entrant.kernel.name) is None, entrant.key


def test_problems_are_what_they_say():
    six = Problem("attention_n2c6h3w1_k8r5s1_g2_f32nhwc_mask")
    assert (six.groups, six.k, six.h.window, six.h.out, six.mask) == (2, 8, 5, 3, True)
    assert str(six) == "attention_n2c6h3w1_k8r5s1_g2_f32nhwc_mask"
    assert six.flops == 2 * 2 * 3 * 5 * (6 + 8)
    with pytest.raises(ValueError, match="W is 2"):
        Problem("attention_n2c6h3w2_k8r5s1_g2_f32nhwc")
    with pytest.raises(ValueError, match="not divisible by groups=4"):
        Problem("attention_n2c6h3w1_k8r5s1_g4_f32nhwc")


def test_refusals_are_sentences():
    scalar = {k.op: k for k in FAST if "scalar" in k.name}
    assert "nchw" in scalar["layernorm2d"].refuses(Problem("layernorm2d_n1c2h3w4_f32nchw"))
    assert "no epilogue" in scalar["softmax2d"].refuses(Problem("softmax2d_n1c2h3w4_f32nhwc_relu"))
    assert "slice" in scalar["copy2d"].refuses(Problem("copy2d_n1c2h3w4_f32nhwc_out0of4"))
    assert "slice" in scalar["attention"].refuses(Problem("attention_n1c2h3w1_k2r3s1_f32nhwc_in0of4"))
