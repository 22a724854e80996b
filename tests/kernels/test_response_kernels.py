"""Every native kernel of local response normalisation: pass x layout x dtype x odd windows and sizes, guarded."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.profiling import machine
from fastconv.testing import corpus
from fastconv.testing.check_norm import case, check_norm
from fastconv.testing.inputs import memory_format
from fastconv.testing.norm_case import KINDS

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("f32", "f64", "f16", "bf16")
KERNELS = [k for k in registry.kernels() if k.op == "lrn2d" and k.native is not None]
FAST = [k for k in KERNELS if not k.is_reference]
SIZES = product((1, 2, 3, 4, 5, 9), (1, 4, 17, 65), ((1, 1), (1, 7), (5, 13)))
SMALL = [Problem(f"lrn2d_n2c{c}h{h}w{w}_size{size}_f32nhwc") for size, c, (h, w) in SIZES]
EDGES = list(corpus.load("edge_lrn"))


def variants(kernel, dtype):
    for base, layout in product(EDGES, LAYOUTS):
        problem = base.replace(pass_=kernel.pass_, layout=layout, dtype=dtype)
        if kernel.refuses(problem) is None:
            yield problem


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
def test_kernels_agree_with_the_oracle(pass_, dtype, layout):
    """Within the bound, for roots and other powers, windows that weigh nothing and much, any offset and threads."""
    found = Counter()
    for i, base in enumerate((*SMALL, *EDGES)):
        problem = base.replace(pass_=pass_, layout=layout, dtype=dtype)
        for j, kind in enumerate(KINDS):
            for kernel in KERNELS:
                if not kernel.computes(problem) or kernel.refuses(problem) is not None:
                    continue
                found[kernel.name] += 1
                options = {"seed": i + j, "offset": i % 16, "threads": (0, 1, 3)[i % 3]}
                try:
                    check_norm(kernel, problem, kind=kind, **options)
                except AssertionError as error:
                    raise AssertionError(f"{kernel.name} on {problem}, {kind}, {options}: {error}") from None
    able = [k for k in KERNELS if k.pass_ == pass_ and "no avx" not in (k.refuses(SMALL[0]) or "").lower()]
    assert all(found[kernel.name] > 30 for kernel in able)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kernel", FAST, ids=lambda k: k.name)
def test_threads_do_not_change_the_result(kernel, dtype):
    """One, two, three and five threads give the same bits."""
    for problem, seed in product(variants(kernel, dtype), (1, 4)):
        given, results = case(problem, "normal", seed), []
        for threads in (1, 2, 3, 5):
            out = torch.empty(given.expected.shape).to(given.tensors["x"].dtype)
            out = out.contiguous(memory_format=memory_format(problem))
            kernel.run(problem, out=out, threads=threads, **given.numbers, **given.tensors)
            results.append(out)
        assert all(torch.equal(results[0], other) for other in results[1:]), f"{kernel.name} on {problem}"


@pytest.mark.parametrize("kernel", FAST, ids=lambda k: k.name)
def test_a_batch_is_its_images(kernel):
    """The bits of an image do not depend on the others, nor on where its blocks begin."""
    for problem in variants(kernel, "f32"):
        given = case(problem, "normal", 1)
        whole, part = (torch.full_like(given.tensors["x"], float("nan")) for _ in range(2))
        kernel.run(problem, out=whole, **given.numbers, **given.tensors)
        single = problem.replace(n=1)
        for n in range(problem.n):
            image = {name: t[n : n + 1] for name, t in given.tensors.items()}
            kernel.run(single, out=part[n : n + 1], **given.numbers, **image)
        assert torch.equal(whole, part), f"{kernel.name} on {problem}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_", ["fprop", "dgrad"])
def test_a_large_neighbour_leaves_no_trace(pass_, layout):
    """A channel 10^7 times the others: windows that do not hold it are summed without it, not by taking it away."""
    problem = Problem(f"lrn2d_n1c40h3w21_size5_f32{layout}").replace(pass_=pass_)
    given = case(problem, "normal", 1)
    apart = [c for c in range(40) if abs(c - 19) > 4]
    results = []
    for size in (1.0, 1e7):
        tensors = {name: t.clone() for name, t in given.tensors.items()}
        tensors["x"][:, 19] *= size
        for kernel in KERNELS:
            if kernel.computes(problem) and kernel.refuses(problem) is None:
                out = torch.empty_like(tensors["x"])
                kernel.run(problem, out=out, **given.numbers, **tensors)
                results.append(out[:, apart])
    half = len(results) // 2
    assert half > 0
    assert all(map(torch.equal, results[:half], results[half:]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_larger_than_the_last_cache(layout):
    """They are written past it: every element arrives, and nothing beside them."""
    pixels = machine.last_cache() // (4 * 4 * 48) // 16 * 16 + 16
    problem = Problem(f"lrn2d_n4c48h1w{pixels}_size5_f32{layout}")
    for kernel in FAST:
        if kernel.pass_ == "fprop" and kernel.refuses(problem) is None and "scalar" not in kernel.name:
            check_norm(kernel, problem, kind="normal", seed=1, threads=2)


def test_refusals_are_sentences():
    scalar = {k.pass_: k for k in FAST if "scalar" in k.name}
    assert "no activation" in scalar["dgrad"].refuses(Problem("lrn2d_n1c2h3w4_size3_f32nhwc_dgrad_relu"))
    assert "channel slice" in scalar["fprop"].refuses(Problem("lrn2d_n1c2h3w4_size3_f32nhwc_out1of4"))


def test_problem_strings():
    """Every text reads back as the same problem, and a window has channels."""
    for problem, pass_ in product((*EDGES, *SMALL), ("fprop", "dgrad")):
        changed = problem.replace(pass_=pass_)
        assert Problem(str(changed)) == changed
    five, three = Problem("lrn2d_n2c3h4w5_size5_f32nchw"), Problem("lrn2d_n2c3h4w5_size3_f32nchw")
    assert five != three and hash(five) != hash(three)
    assert str(five.replace(pass_="dgrad")) == "lrn2d_n2c3h4w5_size5_f32nchw_dgrad"
    assert five.is_norm and five.bytes == 2 * 4 * 120 and five.replace(pass_="dgrad").bytes == 3 * 4 * 120
    for wrong in ("", "_size0", "_size-1", f"_size{2**31}"):
        with pytest.raises(ValueError, match="size is"):
            Problem(f"lrn2d_n2c3h4w5{wrong}_f32nchw")
