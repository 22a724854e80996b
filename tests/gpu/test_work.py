"""What the units of ``python -m benchmarks.gpu`` do, walked through on the CPU with the emulator in the GPU's place:
operands, exact results, verdicts, checks. What is left to a GPU is time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.gpu import behave, clock, functions, plan, race, sanitize, work
from fastconv import dispatch, registry
from fastconv.problem import Problem
from fastconv.profiling.timer import Timing
from fastconv.testing import emulator, hardware, inputs

SMALL = {"n": 2, "c": 8, "k": 8}


@pytest.fixture
def emulated(monkeypatch):
    """The emulator's rows as the list of kernels, which allocate their results like the list's own."""

    def allocating(kernel, problem, out=None, **operands):
        name = inputs.written(problem)
        if out is None:
            out = torch.empty(inputs.shapes(problem)[name], dtype=inputs.DTYPES[problem.dtype])
            out = out.contiguous(memory_format=inputs.memory_format(problem)) if name != "w" else out
        operands = {key: t.detach() if isinstance(t, torch.Tensor) else t for key, t in operands.items()}
        return kernel.run(problem, out=out, **operands)

    rows = tuple(replace(k, run=partial(allocating, k)) for k in emulator.rows())
    everything = registry.kernels()
    torchs = tuple(k for k in everything if k.is_torch)
    monkeypatch.setattr(registry, "kernels", lambda: (*rows, *torchs))
    monkeypatch.setattr(race, "DEVICE", "cpu")
    monkeypatch.setattr(behave, "DEVICE", "cpu")
    monkeypatch.setattr(work, "on_gpu", lambda name: hardware.through(emulator.kernel(name), "cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    yield rows
    dispatch.forget()


def shrunk(text: str) -> Problem:
    """A headline with few pixels and channels."""
    p = Problem(text)
    size = 15 if p.h.window == 7 else 9
    name = str(p).split("_")
    groups = {144: 16, 32: 4}.get(p.groups, 1)
    c = {3: 3}.get(p.c, 16)
    head = f"n2c{c}h{size}w{size + 1}"
    kept = [word for word in name if not word.startswith(("n", "k", "g"))]
    op = [kept.pop(0)] if "pool" in kept[0] else []
    if p.is_conv:
        kept.insert(0, f"k16r{p.h.window}s{p.w.window}")
    kept.insert(len(kept) - kept[::-1].index(next(w for w in kept if w.startswith(p.dtype))) - 1, f"g{groups}")
    return Problem("_".join([*op, head, *[word for word in kept if word != "g1"]]))


@pytest.mark.parametrize("text", plan.HEADLINES)
def test_every_headline_is_raced_against_the_right_result(text, emulated):
    """Operands, the exact result, PyTorch's call and each of ours that accepts: near each other, not near others."""
    torch.manual_seed(0)
    problem = shrunk(text)
    (tensors,) = race.operands(problem, 1)
    expected = race.exact(problem, tensors)
    allowed = race.FARTHEST[problem.dtype]
    assert race.distance(race.torchs(problem, tensors)(), expected) <= allowed
    taking_part = [k for k in emulated if k.computes(problem) and k.refuses(problem) is None]
    assert taking_part
    for kernel in taking_part:
        assert race.distance(race.ours(kernel, problem, tensors)(), expected) <= allowed, kernel.name
    assert race.distance(expected.flip(3) if expected.shape[3] > 1 else expected.flip(0), expected) > allowed
    assert race.distance(torch.full_like(expected, float("nan")), expected) == float("inf")


def test_places_of_maxima_are_numbered_as_the_kernels_do(emulated):
    problem = Problem("maxpool2d_n2c8h9w10_r3s2_u2x1_p1_d1x2_f32nhwc_indexu8")
    x = torch.randn(2, 8, 9, 10).contiguous(memory_format=torch.channels_last)
    index = torch.zeros(inputs.shapes(problem)["y"], dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    kernel = next(k for k in emulated if k.name == "maxpool2d/fprop_window_simt")
    kernel.run(problem, x=x, index=index)
    assert torch.equal(race.places(problem, x), index)


@pytest.mark.parametrize("tf32", [False, True])
def test_pytorch_s_switches_are_put_back(tf32):
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [s.allow_tf32 for s in switches]
    with race.pytorch(tf32=tf32):
        assert [s.allow_tf32 for s in switches] == [tf32, tf32] and torch.backends.cudnn.benchmark
    assert [s.allow_tf32 for s in switches] == before


def test_what_is_compiled_is_what_is_raced(emulated):
    for text in plan.HEADLINES:
        problem = shrunk(text)
        if problem.pass_ == "fprop":
            (tensors,) = race.operands(problem, 1)
            assert race.distance(race._called(problem)(tensors), race.exact(problem, tensors)) <= race.FARTHEST["bf16"]


@pytest.fixture
def timed(monkeypatch):
    """Small functions; what is timed runs once; functions in one kernel, which need a GPU, run as PyTorch's calls."""
    calls, parsed = [], functions.parsed

    def small(text):
        name, *problems = text.split("/")
        return parsed("/".join([name, *(str(shrunk(problem)) for problem in problems)]))

    def seconds(given):
        calls.extend(call() for call in given)
        return Timing(1e-6, 1e-6, 1e-6, len(given))

    def apart(x, w, p, b, c, stride, padding, dilation, activations):
        assert activations == ("relu6", "none")
        y = torch.nn.functional.conv2d(x, w, b, stride, padding, dilation, x.shape[1]).clamp(0, 6)
        return torch.nn.functional.conv2d(y, p, c)

    monkeypatch.setattr(functions, "parsed", small)
    monkeypatch.setattr(clock, "seconds", seconds)
    monkeypatch.setattr(functions.ours, "depthwise_pointwise", apart)
    monkeypatch.setattr(race, "DEVICE", "cpu")
    return calls


@pytest.mark.parametrize("text", plan.FUNCTIONS)
def test_a_function_is_checked_with_its_gradients_and_timed(text, timed):
    found = work.KINDS["function"](text)
    trains = text.startswith("conv2d_batch_norm")
    assert found["outcome"] == "ok" and list(found["times"]) == (["forward", "step"] if trains else ["forward"])
    kernels = [] if trains else ["dwconv2d/fprop_gemm1x1_triton"]  # the one that takes tensors of the CPU
    assert all(list(rows) == ["pytorch", "fastconv", *kernels] for rows in found["times"].values())
    assert len(timed) == (4 if trains else 3)


@pytest.mark.parametrize("part", ["result", "gradient"])
def test_a_function_that_is_wrong_is_wrong(part, timed, monkeypatch):
    """In its result, or in a gradient alone."""
    right = functions.ours.conv2d_batch_norm

    def broken(x, *arguments, **options):
        y = right(x, *arguments, **options)
        return y * 1.1 if part == "result" else y + 0.1 * (x - x.detach()).sum()

    monkeypatch.setattr(functions.ours, "conv2d_batch_norm", broken)
    found = functions.check(plan.FUNCTIONS[2])
    assert found["outcome"] == "wrong" and "too far from float32" in found["reason"] and timed == []


@pytest.mark.parametrize("name", ["conv2d/fprop_igemm_simt", "avgpool2d/dgrad_window_simt"])
def test_a_kernel_is_smoked(name, emulated, monkeypatch):
    monkeypatch.setattr(work, "SMOKE", 2)
    found = work.smoke(name)
    assert found["outcome"] == "ok" and found["problems"] in (2, 6)


def test_a_kernel_that_is_wrong_is_wrong(emulated, monkeypatch):
    def ones(problem, out, **_):
        return out.fill_(1)

    kernel = replace(emulator.kernel("conv2d/fprop_igemm_simt"), run=ones)
    monkeypatch.setattr(work, "on_gpu", lambda name: hardware.through(kernel, "cpu"))
    with pytest.raises(AssertionError, match="elements differ"):
        work.smoke(kernel.name)


def test_emulator_and_device_are_compared(emulated, monkeypatch):
    monkeypatch.setattr(work, "EMULATED", 1)
    found = work.emulate("conv2d/fprop_igemm_simt")
    assert found == {"outcome": "ok", "equal_share": 1.0, "distance": 0.0}


def test_a_kernel_that_accepts_nothing_is_skipped(emulated, monkeypatch):
    refusing = replace(emulator.kernel("conv2d/fprop_igemm_simt"), refuses=lambda p: "Not here.")
    monkeypatch.setattr(work, "on_gpu", lambda name: refusing)
    assert work.smoke(refusing.name) == {"outcome": "skipped", "reason": "Not here."}


@pytest.mark.parametrize("name", ["repeated", "autograd", "refusal"])
def test_behaviours_that_need_no_gpu_hold_in_the_emulator(name, emulated, monkeypatch):
    def kernel(name):
        row = next(k for k in emulated if k.name == name)

        def run(problem, **operands):
            if len([n for n in operands if n in ("x", "w", "y")]) < (2 if problem.is_conv else 1):
                raise RuntimeError("An operand is missing.")
            return row.run(problem, **operands)

        return replace(row, run=run)

    monkeypatch.setattr(registry, "kernel", kernel)
    monkeypatch.setattr(behave, "REPEATS", 1)
    small = [(name, text.replace("n4", "n1").replace("h29w31", "h9w7")) for name, text in behave.CALLS]
    monkeypatch.setattr(behave, "CALLS", small)
    monkeypatch.setattr(behave, "FUNCTIONS", [text.replace("h29w31", "h9w7") for text in behave.FUNCTIONS])
    if name == "refusal":  # a tensor of the CPU is right here
        monkeypatch.setattr(torch.Tensor, "cpu", lambda t: t[:1])
    assert behave.check(name) == {"outcome": "ok"}


def test_every_kernel_has_problems_for_the_sanitizers(emulated):
    for kernel in emulated:
        assert list(sanitize.small(kernel)), kernel.name


def test_graphs_are_long_enough_and_operands_beyond_the_cache():
    l2 = 60 << 20
    assert clock.sets_needed(1e9, l2) == 1 and clock.sets_needed(30e6, l2) == 5 and clock.sets_needed(0, l2) == 64
    assert clock.calls_of_graph(1.0, 1) == 1
    assert clock.calls_of_graph(10e-6, 3) == 201
    assert clock.calls_of_graph(1e-9, 64) == 448
