"""optimize(tune=True) takes what runs fastest, and what plans tell of themselves: times of stages, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastconv
from fastconv.graph import measure, operators, optimize
from fastconv.graph.memory import alive_at_once
from fastconv.problem import Problem
from tests.graph import networks
from tests.graph.test_plans import assert_right


@pytest.fixture(autouse=True)
def nothing_measured_before():
    measure._fastest.cache_clear()
    yield
    measure._fastest.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """Seconds by kernel name in place of measured ones, and the names in the order in which they were asked."""
    seconds, asked = {}, []

    def read(trial):
        name = trial.selection.kernel.algorithm
        asked.append(name)
        return seconds.get(name, 1.0)

    monkeypatch.setattr(measure.Trial, "seconds", read)
    return seconds, asked


@pytest.mark.parametrize("fastest", ["winograd4", "winograd2", "igemm"])
def test_the_fastest_is_taken(clock, fastest):
    clock[0][fastest] = 0.6
    model = nn.Conv2d(32, 32, 3, padding=1).eval()
    plan, x = optimize(model, torch.randn(1, 32, 12, 12), tune=True), torch.randn(1, 32, 12, 12)
    assert_right(plan, model, x, 2e-6)
    kernels = [name for stage in plan.timings(x) for name in stage.kernels]
    assert any(f"fprop_{fastest}_" in name for name in kernels)


def test_what_is_far_behind_is_not_run_again(clock):
    seconds, asked = clock
    seconds.update(igemm=0.1, winograd4=0.15)
    optimize(nn.Conv2d(32, 32, 3).eval(), torch.randn(1, 32, 12, 12), tune=True)(torch.randn(1, 32, 12, 12))
    counts = {name: asked.count(name) for name in asked}
    assert counts["winograd2"] < counts["igemm"] / 2 and counts["winograd4"] == counts["igemm"]


def test_each_problem_is_measured_once(clock):
    model = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)]).eval()
    x = torch.randn(1, 16, 10, 10)
    optimize(model, x, tune=True)(x)
    once = len(clock[1])
    optimize(model, x, tune=True)(x)
    assert 0 < once == len(clock[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", networks.PLANNED)
def test_tuned_plans_are_right(name, dtype, monkeypatch):
    monkeypatch.setattr(measure, "TURNS", 1)
    model, x = networks.make(name, dtype)
    assert_right(optimize(model, x, tune=True), model, x, 2e-6 if dtype == torch.float32 else 3e-2)


def test_settings_hold_while_tuning(monkeypatch):
    monkeypatch.setattr(measure, "TURNS", 1)
    model, x = nn.Conv2d(16, 16, 3, padding=1).eval(), torch.randn(1, 16, 14, 14)
    for limits, options in (({}, {"winograd": False}), ({"isa": "avx2"}, {})):
        with fastconv.config(**limits):
            plan = optimize(model, x, tune=True, **options)
            names = [name for stage in plan.timings(x) for name in stage.kernels]
        assert not any("winograd" in name for name in names) or "winograd" not in options
        assert not any(name.endswith("avx512") for name in names) or "isa" not in limits


def test_copies_go_on_tuning():
    model, x = nn.Conv2d(8, 8, 3).eval(), torch.randn(1, 8, 9, 9)
    assert copy.deepcopy(optimize(model, x, tune=True)).policy.tune
    assert not copy.deepcopy(optimize(model, x)).policy.tune


def test_timings_name_what_ran():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Softmax(1)).eval()
    x = torch.randn(2, 3, 20, 20)
    stages = optimize(model, x).timings(x)
    problems = [Problem(text) for stage in stages for text in stage.problems]
    assert [p.op for p in problems if p.op in ("conv2d", "maxpool2d")] == ["conv2d", "maxpool2d", "conv2d"]
    assert all(stage.seconds > 0 and stage.kernels for stage in stages)
    assert any("softmax" in name for stage in stages if not stage.problems for name in stage.kernels)


def test_a_plan_tells_its_memory():
    model = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]).eval()
    plan = optimize(model, torch.randn(1, 16, 32, 32))
    assert not plan.report.footprints
    plan(torch.randn(2, 16, 32, 32))
    (footprint,) = plan.report.footprints
    assert footprint.shapes == ((2, 16, 32, 32),)
    assert footprint.results == 2 * (2 * 16 * 32 * 32 * 4)  # a layer reads one and writes another
    assert footprint.arena == next(iter(plan.units[0].programs.values())).arena_bytes
    assert "2x16x32x32" in str(plan)


def test_results_live_until_they_were_read():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    a = graph.call_function(operators.flatten, (x,))
    b = graph.call_function(operators.flatten, (a,))
    c = graph.call_function(torch.add, (a, b))
    d = graph.call_function(operators.flatten, (c,))
    sizes = {a: 10, b: 20, c: 40, d: 80}
    assert alive_at_once([a, b, c, d], sizes.__getitem__, {d}) == 70  # a, b and c while c is written
    assert alive_at_once([a, b, c, d], sizes.__getitem__, {c, d}) == 30
