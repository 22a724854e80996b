"""``fastconv train`` and ``fastconv predict``: files, words, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fastconv import cli
from fastconv.models import create_model, load_weights

QUICK = ("--data", "digits", "--epochs", "1", "--batch", "128")


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    assert cli.main(["train", "lenet5_relu", *QUICK, "--epochs", "3", "--batch", "32", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    from fastconv.training import open_data

    image, label = open_data("digits", size=32, channels=1).held[0]
    path = tmp_path / f"{label}.png"
    Image.fromarray(image[0].numpy()).save(path)
    return path


def test_a_run_leaves_its_files(trained: Path):
    assert sorted(file.name for file in trained.iterdir()) == [
        *("best.safetensors", "curves.png", "history.json", "run.safetensors")
    ]
    history = json.loads((trained / "history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == [1, 2, 3]
    assert history["epochs"][2]["loss"] < history["epochs"][0]["loss"]
    assert Image.open(trained / "curves.png").size[0] > 1000
    model = load_weights(create_model("lenet5_relu"), trained / "best.safetensors")  # weights like any others
    assert torch.equal(
        model.state_dict()["features.0.bias"], load_file(trained / "best.safetensors")["features.0.bias"]
    )


def test_predict(capsys, trained: Path, digit: Path, tmp_path: Path):
    figures = tmp_path / "figures.json"
    for options in ((), ("--ten-crops",), ("--checkpoint", str(trained / "run.safetensors"))):
        best = ("--checkpoint", str(trained / "best.safetensors"))
        code, out, err = run(capsys, "predict", "lenet5_relu", str(digit), *best, *options, "--json", str(figures))
        assert (code, err) == (0, "")
        assert "trained on" in out
        (image,) = json.loads(figures.read_text())["images"]
        assert sum(image["probabilities"]) <= 1.0001 and len(image["classes"]) == 5
        if "--ten-crops" not in options:  # whose crops and mirror images are of another size than digits
            assert image["classes"][0] == digit.stem


def test_an_ensemble_averages_probabilities(trained: Path, digit: Path, tmp_path: Path):
    from fastconv.training import checkpoint, load_predictor

    first, second = trained / "best.safetensors", tmp_path / "second.safetensors"
    tensors, state = checkpoint.read(first)
    state = {key: value for key, value in state.items() if key not in ("format", "checksum")}
    checkpoint.write(second, {name: value / 2 for name, value in tensors.items()}, state)
    alone = [load_predictor("lenet5_relu", [path])(digit, top=10) for path in (first, second)]
    both = load_predictor("lenet5_relu", [first, second])(digit, top=10)
    shares = [dict(zip(one.classes, one.probabilities, strict=True)) for one in alone]
    assert shares[0] != shares[1]
    expected = {name: (shares[0][name] + shares[1][name]) / 2 for name in shares[0]}
    assert dict(zip(both.classes, both.probabilities, strict=True)) == pytest.approx(expected)


def test_predict_with_published_weights(capsys, tmp_path: Path):
    from fastconv.models import sample_photographs

    path = tmp_path / "cat.png"
    dict(sample_photographs())["chelsea"].save(path)
    code, out, _ = run(capsys, "predict", "efficientnet_lite0", str(path), "--top", "3")
    assert code == 0 and "cat" in out


def test_the_plan_is_the_papers(capsys):
    code, out, _ = run(capsys, "train", "alexnet", "--data", "shapes", "--plan")
    assert code == 0
    assert "Krizhevsky" in out and "momentum 0.9, decay 0.0005" in out and "128" in out and "dropout" in out


MISTAKES = {
    ("train", "lenet6", *QUICK): "is not the name of a model",
    ("train", "lenet5", "--data", "nowhere"): "there is no folder nowhere",
    ("train", "lenet5", *QUICK, "--epochs", "0"): "--epochs must be at least 1, but is 0.",
    ("train", "lenet5", *QUICK, "--rate", "nan"): "--rate must be a positive number, but is nan.",
    ("train", "lenet5", *QUICK, "--every", "-1"): "--every must be at least 0",
    ("train", "lenet5", *QUICK, "--precision", "int8"): "--precision must be one of float32, bfloat16",
    ("train", "lenet5", *QUICK, "--layers", "keras"): "--layers must be one of fastconv, torch",
    ("train", "lenet5", *QUICK, "--size", "64"): "takes images of 32 x 32 pixels",
    ("train", "fcn8s", *QUICK): "not for every pixel",
    ("train", "lenet5", *QUICK, "--out", "RUN"): "There is a run in",
    ("train", "lenet5", *QUICK, "--out", "RUN", "--resume"): "is of another run: model is 'lenet5_relu' there",
    ("train", "lenet5", *QUICK, "--out", "EMPTY", "--resume"): "There is no run in",
    ("predict", "lenet5", "nowhere.png"): "there is no such file",
    ("predict", "lenet5_relu", "DIGIT"): "There are no weights: give a checkpoint.",
    ("train", "faster_rcnn_small", "--data", "nowhere"): "there is no file nowhere/annotations.json",
    ("train", "yolo_v1_small", "--data", "shapes", "--size", "64"): "takes images of 112 x 112 pixels",
    ("predict", "faster_rcnn_small", "DIGIT"): "A detector takes one --checkpoint, and there are 0.",
    ("predict", "rcnn_small", "DIGIT", "--checkpoint", "RUN/best.safetensors"): "is one of lenet5_relu, not of rcnn_s",
    ("predict", "lenet5_relu", "DIGIT", "--out", "."): "--out is for the pictures a detector draws in",
    ("predict", "fcn8s", "DIGIT"): "gives a class for every pixel",
    ("predict", "lenet5_relu", "DIGIT", "--checkpoint", "nowhere.safetensors"): "There is no checkpoint nowhere.s",
    ("predict", "lenet5_relu", "DIGIT", "--checkpoint", "nowhere.pth"): "There is no checkpoint nowhere.pth",
    ("predict", "lenet5_relu", "DIGIT", "--checkpoint", "DIGIT"): "is damaged, or holds more than weights.",
    ("predict", "lenet5", "DIGIT", "--checkpoint", "RUN/best.safetensors"): "is one of lenet5_relu, not of lenet5",
    ("predict", "lenet5_relu", "BAD", "--checkpoint", "RUN/best.safetensors"): "cannot be read",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_mistakes_are_one_sentence(capsys, words: tuple[str, ...], trained: Path, digit: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    places = {"RUN": str(trained), "EMPTY": str(tmp_path), "DIGIT": str(digit), "BAD": str(tmp_path / "bad.png")}
    real = words
    for word, place in places.items():
        real = tuple(part.replace(word, place) for part in real)
    before = {file: file.stat().st_mtime_ns for file in trained.iterdir()}
    if words[0] == "train" and "--out" not in words:
        real = (*real, "--out", str(tmp_path / "run"))
    code, _, err = run(capsys, *real)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("fastconv: ") and MISTAKES[words] in err
    assert {file: file.stat().st_mtime_ns for file in trained.iterdir()} == before


def test_packages_that_are_missing_are_named(capsys, monkeypatch, tmp_path: Path):
    import builtins

    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.split(".")[0] in ("matplotlib", "sklearn"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for data in ("digits", "shapes"):
        words = ("train", "resnet20_cifar", "--data", data, "--out", str(tmp_path / data))
        code, _, err = run(capsys, *words)
        assert code == 1 and "pip install 'fastconv[train]'" in err
