"""The search for tiles: only what is right and stays inside its buffers is timed; the fastest by a margin is kept."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from fastconv import registry
from fastconv.kernels.triton import configure, tuned
from fastconv.problem import Problem
from fastconv.testing import tune

DENSE = "n3c20h5w6_k24r3s2_p1_f16nhwc_bias_relu"
# One problem of every kind of kernel and check.
PROBLEMS = (
    DENSE,
    "n2c6h25w14_k6r3s3_p1_g6_f32nhwc_dgrad",
    "maxpool2d_n2c8h45w36_r3s2_u2_p1_f16nhwc_indexu8",
    "batchnorm2d_n2c5h48w26_f32nchw_train_relu",
)


def first(text: str):
    problem = Problem(text)
    return tune.kernels_for(problem)[0], problem


def seconds_by(order: dict[configure.Tile, float], other: float = 1.0):
    """A clock that runs the kernel and says what it is told for the tile in force."""

    def bench(run):
        run()
        return order.get(configure.chosen(), other)

    return bench


def offered(kernel, problem) -> list[configure.Tile]:
    outcome = tune.tune(kernel, problem, bench=lambda run: 1.0, device="cpu")
    return [configure.Tile(*trial.tile) for trial in outcome.trials]


@pytest.mark.parametrize("text", PROBLEMS)
def test_every_offered_tile_is_checked_and_timed(text):
    kernel, problem = first(text)
    outcome = tune.tune(kernel, problem, bench=seconds_by({}), device="cpu")
    assert len(outcome.trials) > 1
    assert [trial.reason for trial in outcome.trials] == [None] * len(outcome.trials)
    assert outcome.winner == outcome.default and outcome.margin == 1.0


def test_a_kernel_of_one_tile_is_not_searched():
    kernel, problem = first("unpool2d_n2c3h3w4_o6x8_f32nhwc_indexi64")
    assert tune.tune(kernel, problem, bench=None, device="cpu") is None


def test_the_fastest_tile_is_kept_with_its_margin():
    kernel, problem = first(DENSE)
    tiles = offered(kernel, problem)
    outcome = tune.tune(kernel, problem, bench=seconds_by({tiles[2]: 0.5}), device="cpu")
    assert outcome.winner == astuple(tiles[2]) and outcome.margin == 2.0
    assert outcome.bucket == tuned.bucket(kernel.name, problem)
    entry = outcome.entry()
    assert (entry["tile"], entry["margin"], entry["seconds"]) == (list(astuple(tiles[2])), 2.0, 0.5)


def test_a_tile_that_is_hardly_faster_replaces_nothing():
    kernel, problem = first(DENSE)
    tiles = offered(kernel, problem)
    outcome = tune.tune(kernel, problem, bench=seconds_by({tiles[1]: 0.99}), device="cpu")
    assert outcome.winner == outcome.default


def wrong(problem, out, **_):
    out += 1


def beyond(problem, out, **_):
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(0)


def raises(problem, **_):
    raise RuntimeError("out of resources\nin many lines")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(wrong, "elements differ"), (beyond, "outside the output"), (raises, "RuntimeError: out of resources")],
)
def test_a_tile_with_a_fault_is_never_timed(fault, reason):
    """However fast it would be."""
    kernel, problem = first(DENSE)
    tiles, timed = offered(kernel, problem), []

    def run(problem, **operands):
        y = kernel.run(problem, **operands)
        if configure.chosen() == tiles[1]:
            fault(problem, **operands)
        return y

    def bench(launch):
        timed.append(configure.chosen())
        return 1.0

    outcome = tune.tune(replace(kernel, run=run), problem, bench=bench, device="cpu")
    assert timed == [tiles[0], *tiles[2:]]
    dropped = outcome.trials[1]
    assert dropped.seconds is None and reason in dropped.reason and "\n" not in dropped.reason


def test_without_a_right_tile_nothing_is_kept():
    kernel, problem = first(DENSE)
    outcome = tune.tune(replace(kernel, run=raises), problem, bench=lambda run: 1.0, device="cpu")
    assert outcome.winner is None and outcome.margin is None


def test_a_call_takes_the_tile_that_was_kept(monkeypatch):
    """And a tile that the model does not offer is a miss, not a launch."""
    kernel, problem = first(DENSE)
    tiles, taken = offered(kernel, problem), []
    plain = configure._pick
    monkeypatch.setattr(configure, "_pick", lambda offer: taken.append(plain(offer)) or taken[-1])
    for kept, expected in ((tiles[3], tiles[3]), (None, tiles[0]), (configure.Tile(2048, 4096, 64), tiles[0])):
        monkeypatch.setattr(tuned, "tile", lambda *_, kept=kept: kept)
        tune.check(kernel, problem, "cpu")
        assert taken.pop() == expected


def test_buffers_move_to_a_device_and_back_whole():
    """The way a check runs on a GPU, here between two buffers of the CPU."""
    kernel, problem = first(DENSE)
    there = tune._on("cpu:0", kernel.run)
    tune.check(replace(kernel, run=there), problem, "cpu")

    def leaking(problem, *, threads=0, **operands):
        kernel.run(problem, **operands)
        beyond(problem, **operands)

    with pytest.raises(AssertionError, match="outside the output"):
        tune.check(replace(kernel, run=tune._on("cpu:0", leaking)), problem, "cpu")


def test_no_search_is_ever_started_by_a_call(monkeypatch):
    monkeypatch.setattr(tune, "tune", None)
    monkeypatch.setattr(configure, "offers", None)
    kernel = registry.kernel("conv2d/fprop_igemm_triton")
    for size in (5, 6, 7):
        tune.check(kernel, Problem(f"n1c{size}h{size}w4_k3r3s2_f32nhwc"), "cpu")
