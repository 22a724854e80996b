"""Batch norm layers: running statistics and their count, what has none, training, tracing, SyncBatchNorm, networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastconv
from fastconv.models import create_model
from fastconv.profiling.trace import trace


def pair(cls=nn.BatchNorm2d, **options):
    """torch's layer and its swapped copy, in training."""
    theirs = cls(5, **options)
    if theirs.affine:
        nn.init.normal_(theirs.weight), nn.init.normal_(theirs.bias)
    ours = copy.deepcopy(theirs)
    assert len(fastconv.swap(ours).swapped) == 1
    return theirs, ours


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("cls", [nn.BatchNorm1d, nn.BatchNorm2d], ids=lambda c: c.__name__)
def test_a_life_of_training_and_evaluation(cls, momentum, tracked, affine):
    """The same numbers and the same state as torch's after every step; momentum None averages all batches."""
    theirs, ours = pair(cls, momentum=momentum, track_running_stats=tracked, affine=affine)
    for step in range(6):
        for layer in (theirs, ours):
            layer.train(step % 3 != 2)
        x = torch.randn(3, 5, 4, *([7] if cls is nn.BatchNorm2d else []))
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        y, expected = ours(inputs[0]), theirs(inputs[1])
        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(y)
        y.backward(dy), expected.backward(dy)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value)
        for mine, reference in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, reference.grad, atol=1e-4, rtol=1e-4)
    if tracked:
        assert int(ours.num_batches_tracked) == 4


def test_wrong_ranks_raise_as_torchs():
    for cls, shape in ((nn.BatchNorm2d, (2, 5, 4)), (nn.BatchNorm1d, (2, 5, 4, 3))):
        theirs, ours = pair(cls)
        for layer in (theirs, ours):
            with pytest.raises(ValueError, match="expected"):
                layer(torch.randn(shape))


def test_only_the_exact_classes_are_swapped():
    class Mine(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.SyncBatchNorm(3), Mine(3), nn.BatchNorm3d(3), nn.LazyBatchNorm2d(), nn.BatchNorm2d(3))
    report = fastconv.swap(model)
    assert [row.name for row in report.swapped] == ["4"]
    kept = {row.kind: row.kept for row in report.kept}
    assert "fastconv has no SyncBatchNorm" in kept["SyncBatchNorm"] and "no BatchNorm3d" in kept["BatchNorm3d"]
    assert "subclass of BatchNorm2d" in kept["Mine"] and "no sizes before its first call" in kept["LazyBatchNorm2d"]


def test_converts_to_sync_batch_norm_from_ours():
    _, ours = pair()
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(ours)) is nn.SyncBatchNorm


@pytest.mark.parametrize("training", [True, False])
def test_traces_symbolically(training):
    """The graph computes what the layer does, and counts its batches."""
    theirs, ours = pair()
    graph = torch.fx.symbolic_trace(nn.Sequential(ours.train(training)))
    x = torch.randn(3, 5, 4, 7)
    torch.testing.assert_close(graph(x), theirs.train(training)(x))
    assert int(ours.num_batches_tracked) == int(theirs.num_batches_tracked) == training
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_lite0"])
def test_networks_run_on_our_batch_norms(name):
    model = create_model(name, num_classes=3).train()  # in inference some of them become part of convolutions
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(type(m) is fastconv.nn.BatchNorm2d for m in norms)
    with trace() as calls, torch.no_grad():
        model(torch.randn(1, 3, model_size(name), model_size(name)))
    assert sum(call.problem.is_norm for call in calls) == len(norms)
    torchs = create_model(name, layers="torch", num_classes=3)
    assert all(type(m) is nn.BatchNorm2d for m in torchs.modules() if isinstance(m, nn.BatchNorm2d))


def model_size(name: str) -> int:
    """EfficientNet-Lite's padding is made for its own size."""
    return 224 if "efficientnet" in name else 64
