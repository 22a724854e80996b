"""Swapped models are copied, saved, traced, compiled and swapped again, ten thousand times."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastconv
from tests.nn.models import X, network


def save_and_load(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "clone",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        save_and_load,
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_swapped_models_copy(clone):
    model = network().eval()
    y = model(X)
    classes = [type(m) for m in model.modules()]
    fastconv.swap(model)
    other = clone(model)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(other(X), model(X))
    fastconv.restore(other)
    assert [type(m) for m in other.modules()] == classes
    assert torch.equal(other(X), y)


def test_state_dicts_travel_between_swapped_and_plain_models():
    plain, swapped = network(), network()
    fastconv.swap(swapped)
    assert str(swapped.load_state_dict(plain.state_dict())) == "<All keys matched successfully>"
    assert str(plain.load_state_dict(swapped.state_dict())) == "<All keys matched successfully>"


def test_a_swapped_model_traces_and_compiles():
    model = network().eval()
    fastconv.swap(model)
    y = model(X)
    traced = torch.fx.symbolic_trace(model)
    conv, norm = fastconv.functional.conv2d, fastconv.functional.batch_norm
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [conv, norm, conv]
    assert torch.equal(traced(X), y)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), y)
    exported = torch.export.export(model, (X,))
    assert torch.equal(exported.module()(X), y)


def test_many_cycles_leave_memory_flat():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.MaxPool2d(2))
    for _ in range(100):
        fastconv.swap(model)
        fastconv.restore(model)
    gc.collect()
    objects, resident = len(gc.get_objects()), _resident_bytes()
    for _ in range(10_000):
        fastconv.swap(model)
        fastconv.restore(model)
    gc.collect()
    assert len(gc.get_objects()) - objects < 100
    assert _resident_bytes() - resident < 8e6


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
