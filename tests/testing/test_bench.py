"""The benchmark engine: who takes part, who is refused, and that a wrong kernel is never timed."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

import fastconv
from fastconv import dispatch, registry
from fastconv.dispatch import Candidate
from fastconv.problem import Problem
from fastconv.profiling import machine
from fastconv.profiling.roofline import Ceilings
from fastconv.profiling.timer import Timing
from fastconv.registry import Kernel
from fastconv.testing import bench, oracle, peer, summary
from fastconv.testing.bench import Result, Row

CEILINGS = Ceilings({"f32": 100e9, "f64": 50e9}, ((1 << 30, 10e9),))
SMALL = Problem("n1c8h7w9_k8r3s3_p1_f32nhwc")
PROBLEMS = (
    "n1c8h7w9_k8r3s3_p1_f32nhwc_bias_relu",
    "n2c8h7w9_k6r3s2_u2x1_p1x0_g2_f64nchw",
    "n1c8h7w9_k8r3s3_p1_bf16nhwc_res_silu",
    "n1c8h7w9_k8r3s3_p0:1x1:2_f16nhwc",
    "n1c8h7w9_k8r3s3_p1_f32nhwc_dgrad",
    "n1c8h7w9_k8r3s3_p1_g8_f32nhwc_wgrad",
    "maxpool2d_n1c9h7w8_r3s2_u2_p1x0_f32nhwc",
    "maxpool2d_n1c9h7w8_r3s2_u2_p1x0_f32nhwc_indexi64",
    "maxpool2d_n1c9h7w8_r3s2_u2_p1x0_bf16nhwc_dgrad_indexu8",
    "avgpool2d_n1c9h7w8_r3s2_u2_p1x0_f32nchw",
    "adaptiveavg2d_n1c9h7w8_o3x2_f32nhwc_dgrad",
    "n1c16h6w7_k24r3s3_p1_f32nhwc_out8of40",
)


def run(problem, **options):
    return bench.bench(problem, CEILINGS, seconds=1e-4, **options)


@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("cold", [False, True])
def test_everyone_who_accepts_is_checked_and_timed(text, cold, monkeypatch):
    monkeypatch.setattr(machine, "last_cache", lambda: 1 << 16)
    problem = Problem(text)
    result = run(problem, cold=cold)
    accepted = {c.kernel.name for c in dispatch.candidates(problem) if c.reason is None}
    assert {row.kernel for row in result.rows if row.timing} == accepted
    assert not any(row.wrong for row in result.rows)
    assert all(row.reason for row in result.rows if row.timing is None)
    assert [row.kernel for row in result.rows if row.chosen] == [dispatch.plan(problem).name]
    torchs = {row.layout for row in result.rows if row.is_torch and row.timing}
    assert torchs == (set() if problem.out_channels else {"nhwc", "nchw"})
    assert json.loads(json.dumps(result.as_dict()))["problem"] == text


def test_our_results_come_from_the_memory_that_operators_keep():
    problem = Problem("n1c8h64w64_k64r1s1_f32nhwc")  # a result of 1 MiB
    exact = oracle.ask(problem)
    live = {}
    for entrant in bench.entrants(problem)[0]:
        before = fastconv.memory_stats().live
        result = entrant.call(exact.tensors)()
        live[entrant.kernel.is_torch] = fastconv.memory_stats().live - before >= result.numel() * 4
    assert live == {True: False, False: True}


def test_a_pattern_keeps_the_chosen_kernel_and_torch():
    result = run(SMALL, pattern="conv2d/no_such*")
    timed = {row.kernel for row in result.rows if row.timing}
    assert timed == {"conv2d/fprop_aten", dispatch.plan(SMALL).name}
    assert any("does not name it" in row.reason for row in result.rows if row.reason)


def test_references_are_left_out_of_large_problems(monkeypatch):
    monkeypatch.setattr(bench, "REFERENCE_LIMIT", 1.0)
    rows = [row for row in run(SMALL).rows if "_reference_" in row.kernel]
    assert rows
    assert all(row.timing is None and "reference is left out" in row.reason for row in rows)


def test_a_wrong_kernel_is_reported_and_never_timed(monkeypatch):
    calls = []

    def wrong(problem, *, x, w, out, **_):
        calls.append(1)
        out.copy_(torch.nn.functional.conv2d(x, w, padding=1))
        out[0, 3, 2, 1] += 1e-2
        return out

    cheat = Kernel("conv2d/fprop_cheat_scalar", "conv2d", "fprop", ("cpu",), lambda p: None, wrong)
    real = dispatch.candidates(SMALL)
    monkeypatch.setattr(dispatch, "candidates", lambda *_: [Candidate(cheat, None), *real])
    row = next(row for row in run(SMALL).rows if row.kernel == cheat.name)
    assert row.wrong
    assert row.timing is None
    assert row.reason.startswith("1 of 504 elements are wrong: at (0, 3, 2, 1)")
    assert len(calls) == 1


@pytest.mark.parametrize("index", ["u8", "i64"])
@pytest.mark.parametrize("cheat", ["one wrong", "none written"])
def test_wrong_indices_are_reported_and_never_timed(index, cheat, monkeypatch):
    """Right maxima, found in the wrong places."""
    problem = Problem(f"maxpool2d_n1c9h7w8_r3s2_u2_p1x0_f32nhwc_index{index}")
    honest = registry.kernel("maxpool2d/fprop_window_scalar")

    def wrong(problem, *, x, index, out, **_):
        places = index.clone()
        honest.run(problem, x=x, index=places, out=out)
        if cheat == "one wrong":
            places[0, 3, 2, 1] += 1
            index.copy_(places)
        return out

    row = Kernel("maxpool2d/fprop_cheat_scalar", problem.op, "fprop", ("cpu",), lambda p: None, wrong)
    real = dispatch.candidates(problem)
    monkeypatch.setattr(dispatch, "candidates", lambda *_: [*real, Candidate(row, None)])
    rows = run(problem).rows
    found = next(r for r in rows if r.kernel == row.name)
    assert found.wrong and found.timing is None
    assert "indices are wrong" in found.reason
    assert found.reason.startswith("1 of ") == (cheat == "one wrong")
    assert not any(r.wrong for r in rows if r.kernel != row.name)


@pytest.mark.parametrize("text", PROBLEMS[:6])
def test_the_oracle_sees_one_wrong_element_and_a_nan(text):
    problem = Problem(text)
    exact = oracle.ask(problem)
    right = exact.expected.to(exact.tensors[next(iter(exact.tensors))].dtype)
    assert exact.verdict(right, "conv2d/fprop_igemm_avx2") is None
    for wrong in (1.0, float("nan")):
        bad = right.clone()
        bad.view(-1)[5] += wrong * (1 + bad.abs().max())
        assert "1 of" in exact.verdict(bad, "conv2d/fprop_igemm_avx2")
    assert "shape" in exact.verdict(right[..., :1], "x")


def test_a_huge_problem_is_checked_against_torch_and_says_so(monkeypatch):
    small = oracle.ask(SMALL)
    assert small.source == oracle.REFERENCE
    monkeypatch.setattr(oracle, "HUGE", 1.0)
    huge = oracle.ask(SMALL)
    assert huge.source == oracle.ATEN
    torch.testing.assert_close(huge.expected, small.expected)


PLAIN = [p for p in PROBLEMS if not any(part in p for part in ("res", "out", "bias"))]


@pytest.mark.parametrize("text", PLAIN)
def test_the_torch_call_computes_the_problem(text):
    """What is timed as torch's peer is the problem itself."""
    problem = Problem(text)
    exact = oracle.ask(problem)
    call = peer.torch_call(problem, exact.tensors)
    if problem.h.pad_lo != problem.h.pad_hi:
        assert call is None
        return
    result = call()
    result = result if isinstance(result, torch.Tensor) else next(t for t in result if t is not None)
    assert exact.verdict(result, "conv2d/fprop_aten") is None


def test_totals_weigh_by_multiplicity():
    def result(text, own, torch_times):
        def timing(seconds):
            return Timing(seconds, seconds, seconds, 1)

        rows = [
            Row("conv2d/fprop_aten", layout, timing(t)) for layout, t in zip(("nhwc", "nchw"), torch_times, strict=True)
        ]
        rows.append(Row("conv2d/fprop_x_avx2", "nhwc", timing(own), chosen=True))
        return Result(Problem(text), tuple(rows), 0.5, "bytes", "-")

    results = [result("n1c8h7w9_k8r1s1_f32nhwc", 1.0, (4.0, 5.0)), result("n1c8h7w9_k9r1s1_f32nhwc", 2.0, (3.0, 1.0))]
    total = summary.summarise(results, [3, 1])
    assert (total.own, total.torch, total.limit, total.calls) == (5.0, 13.0, 2.0, 4)
    assert total.geomean == pytest.approx((4.0**3 * 0.5) ** 0.25)
    assert total.worst == 0.5
    assert total.worst_problem == "n1c8h7w9_k9r1s1_f32nhwc"
    empty = summary.summarise([], [])
    assert empty.geomean is None
    assert str(empty) == "No problem was timed on both sides."


def test_every_kernel_of_the_list_can_be_benchmarked():
    """No row is out of reach: each is in the running for some problem of the edge corpus."""
    from fastconv.testing import corpus

    wanted = Counter(k.name for k in registry.kernels() if k.op in ("conv2d", "*"))
    for base in corpus.load("edge_conv"):
        for pass_ in ("fprop", "dgrad", "wgrad"):
            plain = base.replace(
                pass_=pass_, bias=False, residual=False, activation="none", out_channels=0, out_offset=0
            )
            for layout in ("nhwc", "nchw"):
                taking_part, rows = bench.entrants(plain.replace(layout=layout))
                for name in (*(e.kernel.name for e in taking_part), *(r.kernel for r in rows)):
                    wanted.pop(name, None)
    assert not wanted
