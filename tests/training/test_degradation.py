"""The degradation experiment: what it trains, what it measures, what its command writes."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastconv import cli
from fastconv.training.degradation import degradation, gradient_norms

QUICK = ("study", "degradation", "--depth", "20", "--epochs", "1", "--batch", "359", "--size", "8")


def test_gradient_norms_are_those_of_the_loss_and_leave_the_model_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    images, classes = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    before = copy.deepcopy(model.state_dict())
    norms = gradient_norms(model, images, classes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training and model[0].weight.grad is None
    model.train()
    F.cross_entropy(model(images), classes).backward()
    expected = [float(model[i].weight.grad.norm()) for i in (0, 4)]
    assert norms == pytest.approx(expected)


def test_both_kinds_learn_from_the_same_pictures_and_are_told_layer_by_layer():
    (plain, residual) = degradation((20,), epochs=1, batch=359, size=8)
    assert (plain.model, residual.model) == ("plain20_cifar", "resnet20_cifar")
    for course in (plain, residual):
        assert len(course.losses) == 1437 // 359
        assert course.last_loss == pytest.approx(sum(course.losses) / len(course.losses), rel=1e-6)
        assert len(course.gradients_at_start) == len(course.gradients_at_end) == 20
        assert course.gradients_at_start != course.gradients_at_end
    again, _ = degradation((20,), epochs=1, batch=359, size=8)
    assert again == plain
    assert plain.losses != residual.losses


def test_the_command_prints_draws_and_writes(capsys, tmp_path):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert cli.main([*QUICK, "--json", str(path), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "plain20_cifar" in out and "4 steps of 359 pictures" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    content = json.loads(path.read_text())
    assert content["kind"] == "degradation"
    assert [net["model"] for net in content["networks"]] == ["plain20_cifar", "resnet20_cifar"]
    assert [len(net["gradients_at_end"]) for net in content["networks"]] == [20, 20]


MISTAKES = {
    ("--depth", "21"): "Did you mean",
    ("--epochs", "0"): "--epochs must be at least 1, but is 0.",
    ("--data", "nowhere"): "there is no folder nowhere",
    ("--rate", "-1"): "--rate must be a positive number",
    ("--plot", "a.docx"): "the name must end in",
    ("--plot", "nowhere/a.png"): "does not exist",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_sentence(words, capsys):
    assert cli.main(["study", "degradation", *words]) == cli.USAGE
    err = capsys.readouterr().err
    assert err.startswith("fastconv: ") and err.count("\n") == 1 and MISTAKES[words] in err


def test_plots_name_the_extra_that_draws_them(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main([*QUICK, "--plot", "a.png"]) == cli.FAILED
    assert "pip install 'fastconv[train]'" in capsys.readouterr().err
