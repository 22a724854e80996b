"""Networks side by side: depths against the papers' names for them, the table, the picture and the clock."""

from __future__ import annotations

import json

import pytest
import torch

from fastconv import cli
from fastconv.models import create_model, list_models
from fastconv.models.comparison import compare_models, depth

DEPTHS = {
    "alexnet_2012": 8,
    "densenet121": 121,
    "googlenet_2014": 22,
    "mobilenet_v1": 28,
    "plain34": 34,
    "resnet50": 50,
    "resnet110_cifar": 110,
    "vgg16_bn": 16,
}


@pytest.mark.parametrize("name", DEPTHS)
def test_depth_is_the_number_in_the_paper(name):
    with torch.device("meta"):
        assert depth(create_model(name)) == DEPTHS[name]


def test_comparing_keeps_the_mode_and_orders_by_flops():
    model = create_model("lenet5_relu")
    assert depth(model) == 5 and model.training
    names = [standing.name for standing in compare_models(["lenet5_relu", "mlp", "lenet5", "mlp"])]
    assert names == ["mlp", "lenet5", "lenet5_relu"]


def test_the_command_compares_all_models(capsys, tmp_path, monkeypatch):
    path, plot = tmp_path / "a.json", tmp_path / "a.svg"
    monkeypatch.setattr("fastconv.models.comparison.depth", lambda model: 7)  # 64 graphs take longer than a test may
    monkeypatch.setattr("fastconv.models.comparison.create_model", lambda name: None)
    assert cli.main(["models", "--compare", "--json", str(path), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["kind"] == "models compared"
    assert sorted(row["name"] for row in content["models"]) == list_models()
    assert all(row["name"] in out and row["depth"] == 7 for row in content["models"])
    assert plot.read_text().startswith("<?xml")


def test_the_command_measures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("fastconv.cli.models._SECONDS", 0.001)
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    words = ["models", "lenet5_relu", "mlp", "--compare", "--time", "--json", str(path), "--plot", str(plot)]
    assert cli.main(words) == 0
    assert "fastconv, ms" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert "cpu" in content["machine"]
    for row in content["models"]:
        assert min(row["time"]["torch"], row["time"]["fastconv"]) > 0
        assert row["time"]["difference"] < 1e-5
    assert plot.stat().st_size > 0


MISTAKES = {
    ("--compare", "resnet81"): "Did you mean resnet18",
    ("--compare", "--size", "64"): "--size belongs to the layers of one network",
    ("--time",): "--time belongs to --compare",
    ("mlp", "--plot", "a.png"): "--plot belongs to --compare",
    ("mlp", "lenet5"): "--compare sets mlp and lenet5 together",
    ("--compare", "--plot", "a.docx"): "the name must end in",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_sentence(words, capsys):
    assert cli.main(["models", *words]) == cli.USAGE
    err = capsys.readouterr().err
    assert err.startswith("fastconv: ") and err.count("\n") == 1 and MISTAKES[words] in err
