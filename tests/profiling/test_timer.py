"""The timer: order of turns, statistics, rotation. No test asserts how long anything takes."""

from __future__ import annotations

import gc
import itertools
import time

import pytest

from fastconv.profiling import timer


def test_percentiles_interpolate():
    assert timer.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert timer.percentile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    assert timer.percentile([7.0], 0.9) == 7.0


def test_candidates_take_turns():
    """After the warm-up no candidate runs two samples in a row while another is not done."""
    order: list[str] = []

    def candidate(name):
        def call():
            order.append(name)
            time.sleep(2e-4)

        return call

    timings = timer.in_turns({"a": candidate("a"), "b": candidate("b")}, seconds=0.01)
    switches = sum(x != y for x, y in itertools.pairwise(order))
    assert switches >= 2 * timer.FEWEST_TURNS
    for timing in timings.values():
        assert timing.p10 <= timing.median <= timing.p90
        assert timing.calls >= timer.FEWEST_TURNS
        assert timing.median >= 2e-4  # it slept that long
    assert timings["a"].spread >= 0


def test_a_cold_candidate_goes_round_all_its_buffers():
    """Rotating candidates that share buffers never meet one again before all others had their turn."""
    touched: list[int] = []

    def read(i):
        def call():
            touched.append(i)

        return call

    buffers = 50
    calls = [read(i) for i in range(buffers)]
    timer.in_turns({"a": calls, "b": calls}, seconds=0.002)
    sampled = touched[2 * timer.WARM_UP :]
    assert set(sampled) == set(range(buffers))
    assert all((y - x) % buffers == 1 for x, y in itertools.pairwise(sampled))


@pytest.mark.parametrize("long", [False, True])
def test_long_calls_are_made_no_more_often_than_needed(long, monkeypatch):
    """A short one is warmed up, and again before each sample; a long one is sampled a few times and no more."""
    monkeypatch.setattr(timer, "LONG", 0.0 if long else float("inf"))
    made = []
    timer.in_turns({"a": lambda: (made.append(1), time.sleep(1e-3))}, seconds=1e-9)
    assert len(made) == (1 + timer.FEWEST_TURNS if long else timer.WARM_UP + 2 * timer.FEWEST_TURNS)


def test_the_collector_comes_back_even_after_an_error():
    def fails():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        timer.in_turns({"a": fails})
    assert gc.isenabled()


def test_every_turn_is_reported():
    turns = []
    timer.in_turns({"a": lambda: None}, seconds=0.001, on_turn=lambda: turns.append(1))
    assert len(turns) >= timer.FEWEST_TURNS
