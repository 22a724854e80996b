"""Every native kernel of what lies between convolutions: op x layout x dtype x odd sizes and slices, guarded."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from fastconv import reference_map, registry
from fastconv.kernels import aten_map
from fastconv.problem import Problem
from fastconv.profiling import machine
from fastconv.testing import bench, corpus, inputs, oracle
from fastconv.testing.check_map import KINDS, case, check_map

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("f32", "f64", "f16", "bf16")
KERNELS = [k for k in registry.kernels() if k.op in reference_map.OPS and k.native is not None]
FAST = [k for k in KERNELS if not k.is_reference]
EDGES = list(corpus.load("edge_map"))
ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu", "gelutanh")


def variants(base: Problem, layout: str, dtype: str):
    """The problem in a layout and dtype, interpolation with and without aligned corners."""
    problem = base.replace(layout=layout, dtype=dtype)
    return [problem, problem.replace(corners=True)] if base.op == "bilinear2d" else [problem]


def runnable(op: str) -> list:
    """The kernels of an op that this processor runs."""
    sample = next(p for p in EDGES if p.op == op)
    return [k for k in KERNELS if k.op == op and k.refuses(sample) is None]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", reference_map.OPS)
def test_kernels_agree_with_the_oracle(op, dtype, layout):
    """NaN and infinities too; any offset and number of threads; nothing beside a slice is read or written."""
    found = Counter()
    for i, base in enumerate(p for p in EDGES if p.op == op):
        for problem in variants(base, layout, dtype):
            for kind in KINDS:
                for kernel in runnable(op):
                    found[kernel.name] += 1
                    options = {"seed": i, "offset": i % 16, "threads": (0, 1, 3)[i % 3]}
                    try:
                        check_map(kernel, problem, kind=kind, **options)
                    except AssertionError as error:
                        raise AssertionError(f"{kernel.name} on {problem}, {kind}, {options}: {error}") from None
    assert found and all(count >= 39 for count in found.values())


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kernel", FAST, ids=lambda k: k.name)
def test_threads_do_not_change_the_result(kernel, dtype):
    """One, two, three and five threads give the same bits."""
    for base in (p for p in EDGES if kernel.computes(p) and p.n and p.c):
        for layout in LAYOUTS:
            for problem in variants(base, layout, dtype):
                if kernel.refuses(problem) is not None:
                    continue
                given, results = case(problem, "normal", 0), []
                for threads in (1, 2, 3, 5):
                    out = inputs.guarded_output(problem)
                    kernel.run(problem, out=out.buffer, threads=threads, **given.tensors)
                    results.append(out.tensor)
                assert all(torch.equal(results[0], other) for other in results[1:]), str(problem)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_everywhere(activation, dtype):
    """A fine grid, dense around zero, in whole registers and a rest; from where silu is no subnormal number."""
    grid = torch.cat([torch.linspace(-80, 110, 4001), torch.linspace(-1, 1, 4001), torch.linspace(-1e-5, 1e-5, 101)])
    x = grid.to(inputs.DTYPES[dtype]).reshape(1, 1, 1, -1)
    problem = Problem(f"map2d_n1c1h1w{x.numel()}_{dtype}nhwc").replace(activation=activation, alpha=0.1)
    expected = reference_map.map_(problem, x)
    unit = {"f64": 2.0**-50, "f32": 2.0**-22, "f16": 2.0**-10, "bf16": 2.0**-8}[dtype]
    tiny = torch.finfo(inputs.DTYPES[dtype]).tiny
    for kernel in runnable("map2d"):
        out = kernel.run(problem, out=torch.empty_like(x), x=x)
        # Beside a few units of the result: 1 + erf cancels for negative x, and exp takes its argument's error.
        allowed = unit * (expected.abs() + (x.double().abs() if "gelu" in activation else 0)) + tiny
        wrong = (out.double() - expected).abs() > allowed
        assert not wrong.any(), f"{kernel.name} at {x[wrong][:4].tolist()}: {out[wrong][:4]}, {expected[wrong][:4]}"


@pytest.mark.parametrize("op", reference_map.OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_larger_than_the_last_cache(op, layout):
    """They are written past it: every element arrives, and nothing beside them."""
    pixels = machine.last_cache() // (4 * 16) // 16 * 16 + 16
    text = {
        "map2d": f"map2d_n1c16h1w{pixels}_f32{layout}_scale_relu",
        "reorder2d": f"reorder2d_n1c16h1w{pixels}_f32{layout}",
        "bilinear2d": f"bilinear2d_n1c16h99w128_o{pixels // 512 + 1}x512_f32{layout}",
        "nearest2d": f"nearest2d_n1c16h99w128_o{pixels // 512 + 1}x512_f32{layout}",
    }[op]
    for kernel in FAST:
        if kernel.op == op and kernel.refuses(Problem(text)) is None and "scalar" not in kernel.name:
            check_map(kernel, Problem(text), kind="integers", threads=2)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("sizes", [((7, 5), (28, 33)), ((20, 31), (8, 8)), ((1, 1), (4, 6)), ((9, 9), (9, 9))])
def test_interpolation_is_torch_s(sizes, corners):
    """The oracle and torch mean the same function: float64, where torch's places are as good as exact."""
    (h, w), (p, q) = sizes
    problem = Problem(f"bilinear2d_n2c3h{h}w{w}_o{p}x{q}_f64nhwc").replace(corners=corners)
    x = case(problem, "normal", 0).tensors["x"]
    theirs = torch.nn.functional.interpolate(x, (p, q), mode="bilinear", align_corners=corners)
    assert (reference_map.interpolate(problem, x) - theirs).abs().max() < 1e-13


@pytest.mark.parametrize("sizes", [((7, 5), (28, 15)), ((20, 31), (8, 8)), ((1, 1), (4, 6)), ((9, 9), (9, 9))])
def test_nearest_pixels_are_torch_s(sizes):
    (h, w), (p, q) = sizes
    problem = Problem(f"nearest2d_n2c3h{h}w{w}_o{p}x{q}_f32nhwc")
    x = case(problem, "normal", 0).tensors["x"]
    assert torch.equal(reference_map.nearest(problem, x).float(), torch.nn.functional.interpolate(x, (p, q)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_torch_s_places_are_others_is_known(dtype):
    """Every way between small sizes: torch's own answer, and what is said of it; some are others."""
    others = 0
    for size in range(1, 64):
        x = torch.arange(size, dtype=dtype).reshape(1, 1, 1, -1)
        for out in range(1, 130):
            same = torch.equal(
                torch.nn.functional.interpolate(x, (1, out)).flatten(), x.flatten()[torch.arange(out) * size // out]
            )
            assert same or not aten_map.takes_torch_s_pixels(size, out), (size, out)
            others += not aten_map.takes_torch_s_pixels(size, out)
    assert 0 < others < 2000


TEXTS = (
    "nearest2d_n2c5h7w5_o14x15_f32nhwc",
    "map2d_n2c24h7w5_f32nhwc_scale_res_silu_in8of40",
    "reorder2d_n2c24h7w5_f32nchw",
    "bilinear2d_n2c5h7w5_o14x9_f32nhwc",
    "bilinear2d_n2c5h7w5_o14x9_bf16nchw_corners",
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


def test_refusals_are_sentences():
    scalar = {k.op: k for k in FAST if "scalar" in k.name}
    assert "no bias" in scalar["map2d"].refuses(Problem("map2d_n1c2h3w4_f32nhwc_bias"))
    assert "no activation" in scalar["bilinear2d"].refuses(Problem("bilinear2d_n1c2h3w4_o5x5_f32nhwc_relu"))
    assert "slice" in scalar["reorder2d"].refuses(Problem("reorder2d_n1c2h3w4_f32nhwc_in0of4"))
    assert "slice" in scalar["reorder2d"].refuses(Problem("reorder2d_n1c2h3w4_f32nhwc_out0of4"))
