"""Layers a swap leaves alone, and the sentence that says why."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastconv
from tests.nn.models import snapshot


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + 1


class Renamed(nn.Conv2d):
    pass


def script() -> nn.Module:
    return torch.jit.script(nn.Conv2d(3, 4, 1))


def instance_forward() -> nn.Module:
    layer = nn.Conv2d(3, 4, 1)
    layer.forward = lambda x: x
    return layer


def sparse() -> nn.Module:
    layer = nn.Conv2d(3, 4, 1)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


def subclassed_weight() -> nn.Module:
    class Marked(torch.Tensor):
        pass

    layer = nn.Conv2d(3, 4, 1)
    layer._parameters["weight"] = layer.weight.detach().as_subclass(Marked)
    return layer


KEPT = [
    (lambda: OwnForward(3, 4, 1), "OwnForward has its own forward."),
    (lambda: Renamed(3, 4, 1), "Renamed is a subclass of Conv2d; only torch's own classes are swapped."),
    (lambda: nn.LazyConv2d(4, 1), "LazyConv2d has no sizes before its first call; swap again after it."),
    (lambda: nn.Conv3d(3, 4, 1), "fastconv has no Conv3d; PyTorch's own operator runs."),
    (lambda: nn.MaxPool3d(2), "fastconv has no MaxPool3d; PyTorch's own operator runs."),
    (lambda: nn.FractionalMaxPool2d(2, 3), "fastconv has no FractionalMaxPool2d; PyTorch's own operator runs."),
    (lambda: fastconv.nn.Conv2d(3, 4, 1), "It is a fastconv layer already."),
    (lambda: nn.Conv2d(3, 4, 1, dtype=torch.complex64), "Its weight is torch.complex64; PyTorch's own operator runs."),
    (instance_forward, "Its forward was replaced on this module."),
    (sparse, "Its weight is torch.sparse_coo; PyTorch's own operator runs."),
    (subclassed_weight, "Its weight is a Marked, which brings operators of its own."),
    (script, "It is compiled by TorchScript, which fixes its operators."),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "reason"), KEPT, ids=lambda v: v if isinstance(v, str) else "")
def test_kept_and_reported(make, reason):
    model = nn.Sequential(make(), nn.Linear(2, 2))
    before = snapshot(model)
    report = fastconv.swap(model)
    assert snapshot(model) == before
    assert [(row.name, row.kept) for row in report.rows] == [("0", reason)]
    assert reason in str(report)


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers_are_kept():
    model = torch.ao.nn.quantized.Conv2d(3, 4, 1)
    report = fastconv.swap(model)
    assert report.rows[0].kept == "fastconv has no quantized Conv2d; PyTorch's own operator runs."
    assert type(model) is torch.ao.nn.quantized.Conv2d
