"""Every native batch normalisation kernel: pass x mode x layout x dtype x odd sizes, between guard zones."""

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
from fastconv.testing.inputs import guarded_output, in_buffer, memory_format

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("f32", "f64", "f16", "bf16")
KERNELS = [k for k in registry.kernels() if k.op == "batchnorm2d" and k.native is not None]
SIZES = product((1, 2, 5), (1, 3, 17, 64, 65), ((1, 1), (1, 7), (7, 7), (5, 10)))
SMALL = [Problem(f"batchnorm2d_n{n}c{c}h{h}w{w}_f32nhwc") for n, c, (h, w) in SIZES]
EDGES = list(corpus.load("edge_norm"))


def edges(kernel, dtype):
    for base in EDGES:
        for layout, training in product(LAYOUTS, (False, True)):
            problem = base.replace(pass_=kernel.pass_, layout=layout, dtype=dtype, training=training)
            if kernel.refuses(problem) is None:
                yield problem


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_kernels_agree_with_the_oracle(pass_, dtype, layout):
    """Equal where integers leave nothing to round, else within the bound; any offset and number of threads."""
    found = Counter()
    for i, (base, training) in enumerate(product((*SMALL, *EDGES), (False, True))):
        if dtype != "f32" and base in SMALL and i % 3:
            continue
        problem = base.replace(pass_=pass_, layout=layout, dtype=dtype, training=training)
        for kind in ("integers", ("normal", "shifted")[i // 2 % 2]):
            for kernel in KERNELS:
                if not kernel.computes(problem) or kernel.refuses(problem) is not None:
                    continue
                found[kernel.name] += 1
                try:
                    options = {"seed": i, "offset": i % 16, "threads": (0, 1, 3)[i % 3], "affine": i % 5 != 0}
                    check_norm(kernel, problem, kind=kind, **options)
                except AssertionError as error:
                    raise AssertionError(f"{kernel.name} on {problem}, {kind}, {options}: {error}") from None
    able = [k for k in KERNELS if k.pass_ == pass_ and "no avx" not in (k.refuses(SMALL[0]) or "").lower()]
    assert all(found[kernel.name] > 30 for kernel in able)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if not k.is_reference], ids=lambda k: k.name)
def test_threads_do_not_change_the_result(kernel, dtype):
    """One, two, three and five threads give the same bits, the channels' pair included."""
    for problem in edges(kernel, dtype):
        given = case(problem, "normal", 0)
        results = []
        for threads in (1, 2, 3, 5):
            tensors, empty = dict(given.tensors), torch.empty(given.expected.shape)
            if given.stats is not None:
                tensors["stats"] = torch.empty(given.stats.shape)
            out = empty
            if problem.pass_ != "wgrad":
                out = empty.to(tensors["x"].dtype).contiguous(memory_format=memory_format(problem))
            kernel.run(problem, out=out, threads=threads, **given.numbers, **tensors)
            results.append((out, tensors.get("stats", out)))
        for pair in results[1:]:
            assert all(map(torch.equal, results[0], pair)), f"{kernel.name} on {problem}"


SLICES = ("in0of3", "in16of64_out0of32", "out5of70", "in3of67_out64of129")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inference_between_channel_slices(dtype, layout):
    """Nothing beside them is read or written; the bits do not depend on the number of threads."""
    found = Counter()
    for i, (shape, words, rest) in enumerate(
        product(("n1c3h5w7", "n2c16h9w13", "n3c33h1w1"), SLICES, ("", "_res_relu"))
    ):
        try:
            problem = Problem(f"batchnorm2d_{shape}_{dtype}{layout}{rest}_{words}")
        except ValueError:  # the buffer is too small for so many channels
            continue
        for kernel, kind in product(KERNELS, ("integers", "normal")):
            if not kernel.computes(problem) or kernel.refuses(problem) is not None:
                continue
            found[kernel.name] += 1
            check_norm(kernel, problem, kind=kind, seed=i, offset=i % 16, threads=(1, 2, 3)[i % 3], affine=i % 4 != 0)
            given, results = case(problem, kind, i), []
            tensors = given.tensors | {"x": in_buffer(problem, given.tensors["x"])}
            for threads in (1, 2, 3, 5):
                out = guarded_output(problem)
                kernel.run(problem, out=out.buffer, threads=threads, **given.numbers, **tensors)
                results.append(out.tensor)
            assert all(torch.equal(results[0], other) for other in results[1:]), f"{kernel.name} on {problem}"
    assert len(found) > 1 and min(found.values()) > 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_survive_a_large_mean(layout):
    """Channels whose mean is 10^4 times their deviation: a sum of squares in float would lose the variance whole."""
    x = (torch.randn(8, 24, 30, 31, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4).float()
    x = x.contiguous(memory_format=torch.channels_last if layout == "nhwc" else torch.contiguous_format)
    problem = Problem(f"batchnorm2d_n8c24h30w31_f32{layout}_train")
    exact = x.double().var((0, 2, 3), correction=0)
    for kernel in KERNELS:
        if kernel.pass_ != "fprop" or kernel.refuses(problem) is not None:
            continue
        stats = torch.empty(2, 24)
        kernel.run(problem, x=x, out=torch.empty_like(x), stats=stats)
        assert (stats[1].double() / exact - 1).abs().max() < 1e-6, kernel.name
        assert torch.equal(stats[0], x.double().mean((0, 2, 3)).float()), kernel.name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_larger_than_the_last_cache(layout):
    """They are written past it: every element arrives, and nothing beside them."""
    pixels = machine.last_cache() // (4 * 4 * 48) // 16 * 16 + 16
    problem = Problem(f"batchnorm2d_n4c48h1w{pixels}_f32{layout}")
    for kernel in KERNELS:
        if kernel.pass_ == "fprop" and kernel.refuses(problem) is None and not kernel.is_reference:
            check_norm(kernel, problem, kind="integers", threads=2)


def test_refusals_are_sentences():
    """What a norm does not do is said with a reason, and the reference refuses the same."""
    for kernel in KERNELS:
        if kernel.pass_ == "dgrad" and "scalar" in kernel.name:
            assert "no activation" in kernel.refuses(Problem("batchnorm2d_n1c2h3w4_f32nhwc_dgrad_relu"))
        if kernel.pass_ == "fprop" and "scalar" in kernel.name:
            assert "channel slice" in kernel.refuses(Problem("batchnorm2d_n1c2h3w4_f32nhwc_train_out1of4"))
            assert "channel slice" in kernel.refuses(Problem("batchnorm2d_n1c2h3w4_f32nhwc_train_in1of4"))


def test_problem_strings():
    """Every norm's text reads back as the same problem."""
    for problem in [*EDGES, *SMALL]:
        for pass_, training in product(("fprop", "dgrad", "wgrad"), (False, True)):
            changed = problem.replace(pass_=pass_, training=training)
            assert Problem(str(changed)) == changed
    assert str(Problem("batchnorm2d_n2c3h4w5_f32nchw_train_dgrad")) == "batchnorm2d_n2c3h4w5_f32nchw_dgrad_train"
    eval_, train = Problem("batchnorm2d_n2c3h4w5_f32nchw"), Problem("batchnorm2d_n2c3h4w5_f32nchw_train")
    assert eval_ != train and hash(eval_) != hash(train)
    assert eval_.bytes == 2 * 4 * 120 and eval_.replace(pass_="dgrad").bytes == 3 * 4 * 120


def test_pytorch_s_row_writes_over_whatever_lay_where_statistics_go():
    problem = Problem("batchnorm2d_n2c5h3w4_f32nhwc").replace(training=True)
    given = case(problem, "normal", 0)
    stats = torch.full(given.stats.shape, torch.nan)
    y = registry.kernel("batchnorm2d/fprop_aten").run(problem, **given.tensors, stats=stats, **given.numbers)
    torch.testing.assert_close(stats.double(), given.stats.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.double(), given.expected.double(), rtol=1e-4, atol=1e-4)
