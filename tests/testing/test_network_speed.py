"""The table of whole networks: right results alone are timed, and ratios are to the best of the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastconv.profiling.machine import this_machine
from fastconv.profiling.timer import Timing
from fastconv.testing import network_speed, ways


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def test_every_way_is_right_and_timed():
    result = network_speed.measure("little", network(), torch.randn(2, 3, 10, 9), [], 0.001)
    assert set(result.times) == set(result.errors)
    assert {"stock NCHW", "swapped NCHW", "stock channels_last", "swapped channels_last", "plan"} == set(result.times)
    assert result.errors["plan"] < 1e-6 and result.batch == 2


def test_a_wrong_way_is_not_timed(monkeypatch):
    wrong = ways.Way("plan", True, lambda x: network()(x), torch.randn(2, 3, 10, 9))
    monkeypatch.setattr(ways, "plan", lambda model, x: wrong)
    with pytest.raises(RuntimeError, match="little, plan: its relative L2 error is"):
        network_speed.measure("little", network(), torch.randn(2, 3, 10, 9), [], 0.001)


def test_a_peer_that_is_missing_is_named(monkeypatch):
    def missing(model, x):
        raise ImportError("No module named 'nobody'")

    monkeypatch.setitem(ways.PEERS, "nobody", missing)
    result = network_speed.measure("little", network(), torch.randn(1, 3, 10, 9), ["nobody"], 0.001)
    assert "nobody is not installed" in result.missing["nobody"]
    assert "nobody is not installed" in network_speed.markdown(this_machine(), [result])


def test_the_ratio_is_to_the_best_of_the_others():
    def timing(seconds: float) -> Timing:
        return Timing(seconds, seconds, seconds, 5)

    times = {"stock NCHW": 4.0, "stock channels_last": 3.0, "swapped NCHW": 2.0, "plan": 1.0, "ONNX Runtime": 2.5}
    result = network_speed.Result("little", 1, {name: timing(t) for name, t in times.items()}, {"plan": 1e-7}, {}, None)
    assert result.best_peer == "ONNX Runtime" and result.standing("plan") == 2.5
    table = network_speed.markdown(this_machine(), [result])
    assert "| little 1 |" in table and "| 2.50x | 1.50x |" in table
