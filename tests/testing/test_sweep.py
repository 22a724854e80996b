"""The sweep without a clock: its points, its kernels, what counts as a cliff, and what the command writes."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.profiling import machine, timer
from fastconv.profiling.timer import Timing
from fastconv.testing import sweep, tolerances
from fastconv.testing.sweep import Point

SCRIPT = Path(__file__).parents[2] / "benchmarks/sweep.py"
PROBLEM = Problem("n1c8h9w7_k6r3s3_p1_f32nhwc")


@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_one_axis_moves_at_a_time_and_every_algorithm_meets_its_problems(pass_):
    points = list(sweep.problems(pass_))
    assert {problem.pass_ for *_, problem in points} == {pass_}
    for (family, axis), along in itertools.groupby(points, lambda point: point[:2]):
        along = list(along)
        values = [value for _, _, value, _ in along]
        assert values == sorted(set(values))
        centre = sweep.FAMILIES[family][1]
        assert family == "tiny 3x3" or centre[axis] in values
        for _, _, value, problem in along:
            sizes = centre | {axis: value}
            groups = 32 if "grouped" in family else problem.c if "depthwise" in family else 1
            channels = sizes["channels"] * (groups if "grouped" in family else 1)
            assert (problem.n, problem.c, problem.k, problem.groups) == (sizes["batch"], channels, channels, groups)
            assert (problem.h.size, problem.w.size) == (sizes["map"], sizes["map"])
    met = {
        name for *_, problem in sweep.problems(pass_) for name in sweep.algorithms() if sweep.kernel_of(name, problem)
    }
    own = (k for k in registry.kernels() if k.op == "conv2d" and k.native is not None and not k.is_reference)
    assert met == {k.algorithm for k in own if k.pass_ == pass_} - tolerances.OF_BFLOAT16


def test_an_algorithm_runs_on_its_widest_registers_in_the_layout_it_takes():
    widest = machine.isas()[-1]
    kernel, laid = sweep.kernel_of("igemm", PROBLEM)
    assert (kernel.name, laid.layout) == (f"conv2d/fprop_igemm_{widest}", "nhwc")
    kernel, laid = sweep.kernel_of("im2col", PROBLEM)
    assert (kernel.name, laid.layout) == (f"conv2d/fprop_im2col_{widest}", "nchw")
    assert sweep.kernel_of("winograd2", PROBLEM)[1].layout == "nhwc"  # it takes both
    assert sweep.kernel_of("depthwise", PROBLEM) is None


@pytest.fixture
def clock(monkeypatch):
    """A timer without time: every call takes a second, torch's in NCHW a half; keeps the threads and who was timed."""
    seen = []

    def in_turns(calls, seconds):
        seen.append((torch.get_num_threads(), sorted(calls)))
        for call in calls.values():
            call()
        return {name: Timing(*[0.5 if name == "torch nchw" else 1.0] * 3, 1) for name in calls}

    monkeypatch.setattr(timer, "in_turns", in_turns)
    return seen


def test_rates_count_torchs_better_layout_and_leave_the_threads_as_they_were(clock):
    before = torch.get_num_threads()
    rates = sweep.rates(PROBLEM, [1, 3], 0.1)
    everyone = ["dot", "igemm", "im2col", "torch nchw", "torch nhwc", "winograd2", "winograd4"]
    assert clock == [(1, everyone), (3, everyone)]
    assert torch.get_num_threads() == before
    own = dict.fromkeys(("dot", "igemm", "im2col", "winograd2", "winograd4"), float(PROBLEM.flops))
    assert rates == dict.fromkeys((1, 3), own | {"torch": 2.0 * PROBLEM.flops})


def test_a_wrong_result_is_named_and_never_timed(clock, monkeypatch):
    honest = sweep.bench.Entrant.call
    monkeypatch.setattr(sweep.bench.Entrant, "call", lambda self, tensors: lambda: honest(self, tensors)() + 1e-2)
    with pytest.raises(RuntimeError, match=f"fprop_igemm_.* on {PROBLEM}: .* elements are wrong"):
        sweep.rates(PROBLEM, [1], 0.1)
    assert not clock


def points(rates, family="3x3", axis="batch", threads=1, who="igemm"):
    return [Point(family, axis, value, threads, PROBLEM, {who: rate}) for value, rate in enumerate(rates)]


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ([10.0, 5.9, 10.0], [1]),
        ([10.0, 6.0, 10.0], []),  # not below
        ([10.0, 5.9, 9.0], []),  # below one neighbour only
        ([9.0, 5.9, 10.0], []),
        ([1.0, 10.0, 10.0], []),  # the ends have one neighbour
        ([10.0, 10.0, 1.0], []),
        ([10.0, 5.0, 10.0, 20.0, 11.0, 20.0], [1, 4]),
    ],
)
def test_a_cliff_is_a_point_below_both_neighbours(rates, found):
    assert [cliff.value for cliff in sweep.cliffs(points(rates))] == found


def test_lines_do_not_mix():
    """Neighbours are of the same family, axis, threads and algorithm, whatever order the points were measured in."""
    one = points([10.0, 10.0, 10.0])
    others = [
        *points([1.0, 1.0, 1.0], threads=2),
        *points([1.0, 1.0, 1.0], axis="map"),
        *points([1.0, 1.0, 1.0], family="1x1"),
        *points([1.0, 1.0, 1.0], who="torch"),
    ]
    groups = one, others[:3], others[3:6], others[6:9], others[9:]
    woven = list(itertools.chain(*zip(*groups, strict=True)))
    assert not sweep.cliffs(woven)
    gap = points([10.0, 3.0, 10.0, 10.0])
    gap[1].rates.clear()  # refused: its neighbours are neighbours now
    assert not sweep.cliffs(gap)
    [cliff] = sweep.cliffs([*woven, *points([10.0, 4.0, 8.0], threads=3)])
    assert str(cliff) == f"igemm, 3 threads, 3x3 along batch: 1 runs at 0.50 of its slower neighbour ({PROBLEM})"


def test_the_command_writes_figures_and_plots(clock, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("sweep_command", SCRIPT)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    monkeypatch.setattr(sweep, "AXES", {"batch": (1, 2, 3), "map": (4, 5), "channels": (1, 2)})
    monkeypatch.setattr(sweep, "CENTRE", {"batch": 1, "map": 4, "channels": 2})
    small = {name: (text, sweep.CENTRE) for name, (text, _) in sweep.FAMILIES.items()}
    monkeypatch.setattr(sweep, "FAMILIES", small)
    arguments = ["sweep.py", "--passes", "fprop,wgrad", "--threads", "1,2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert command.main() == 0
    for pass_ in ("fprop", "wgrad"):
        lines = (tmp_path / f"sweep_{pass_}.json").read_text().splitlines()
        content = json.loads("\n".join(lines))
        wanted = [str(problem) for *_, problem in sweep.problems(pass_) for _ in range(2)]
        assert [point["problem"] for point in content["points"]] == wanted
        assert sum(line.startswith("  {") for line in lines) == len(wanted)  # one line each
        assert all(point["rates"]["torch"] > 0 for point in content["points"])
        assert (tmp_path / f"sweep_{pass_}.png").read_bytes().startswith(b"\x89PNG")
    assert f"fprop: {len(wanted)} points, " in capsys.readouterr().out
