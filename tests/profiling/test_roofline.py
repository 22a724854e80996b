"""Measured limits and machine facts: their meaning, not their size."""

from __future__ import annotations

import json
import os

import pytest
import torch

from fastconv._native import C
from fastconv.problem import Problem
from fastconv.profiling import machine, roofline
from fastconv.profiling.roofline import Ceilings

CEILINGS = Ceilings({"f32": 100e9, "f64": 50e9}, ((1 << 20, 80e9), (1 << 24, 40e9), (1 << 30, 10e9)))


def test_the_limit_is_the_larger_of_arithmetic_and_bytes():
    dense = Problem("n1c256h56w56_k256r3s3_p1_f32nhwc")
    pool = Problem("maxpool2d_n1c64h112w112_r3s3_u2_p1_f32nhwc")
    assert CEILINGS.limit(dense) == pytest.approx(dense.flops / 100e9)
    assert CEILINGS.bound(dense) == "arithmetic"
    assert CEILINGS.limit(pool) == pytest.approx(pool.bytes / 40e9)  # fits 16 MiB
    assert CEILINGS.limit(pool, cold=True) == pytest.approx(pool.bytes / 10e9)
    assert CEILINGS.bound(pool) == "bytes"


def test_float64_has_a_limit_of_its_own():
    problem = Problem("n1c256h56w56_k256r3s3_p1_f64nhwc")
    assert CEILINGS.limit(problem) == pytest.approx(problem.flops / 50e9)


def test_bandwidth_is_that_of_where_the_data_lies():
    assert CEILINGS.bandwidth(1000) == 80e9
    assert CEILINGS.bandwidth(1 << 22) == 40e9
    assert CEILINGS.bandwidth(1 << 40) == 10e9
    assert CEILINGS.memory == 10e9


@pytest.mark.parametrize("wide", [False, True])
def test_a_burst_counts_its_flops(wide):
    """On every thread, in proportion to the rounds: chains x lanes x 2 each."""
    for isa in machine.isas():
        once, often = (C.fma_burst(isa, wide, rounds) for rounds in (1, 1000))
        assert len(once) == torch.get_num_threads()
        assert [flops for flops, _ in often] == [1000 * flops for flops, _ in once]
        assert all(flops > 0 and flops % 2 == 0 and seconds > 0 for flops, seconds in often)


def test_a_burst_without_its_instruction_set_is_refused():
    with pytest.raises(ValueError, match="no instruction set named 'mmx'"):
        C.fma_burst("mmx", False, 1)
    missing = [isa for isa in C.isas() if isa not in machine.isas()]
    for isa in missing:
        with pytest.raises(ValueError, match=isa):
            C.fma_burst(isa, False, 1)


def test_measured_ceilings_are_rates(monkeypatch):
    monkeypatch.setattr(roofline, "TRIES", 2)
    monkeypatch.setattr(roofline, "COPIED", 1 << 20)
    monkeypatch.setattr(machine, "last_cache", lambda: 1 << 20)
    measured = roofline.measure()
    assert measured.flops["f32"] > measured.flops["f64"] / 4 > 0
    assert all(rate > 0 for _, rate in measured.copies)
    assert [size for size, _ in measured.copies] == [*roofline.CACHED_FOOTPRINTS, 4 << 20]
    json.dumps(measured.as_dict())


def test_machine_facts():
    facts = machine.this_machine()
    assert facts.torch == torch.__version__
    assert facts.threads == torch.get_num_threads()
    assert facts.isa in machine.isas()
    assert facts.slug.replace("-", "").isalnum()
    assert facts.slug.endswith("cores")
    assert facts.last_cache >= 1 << 18
    assert json.loads(json.dumps(facts.as_dict())) == facts.as_dict()


def test_bound_threads_do_not_hide_the_cores(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads + 1)))
    assert not machine.threads_are_bound() and machine.cores() == threads + 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads - 1)))
    assert machine.threads_are_bound() and machine.cores() == threads
