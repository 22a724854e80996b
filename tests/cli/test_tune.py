"""``fastconv tune`` around a search that finds what the test says: no GPU is needed, and none is touched."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from fastconv import cli
from fastconv.kernels import triton as rows

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

DENSE = "n8c64h28w30_k64r3s3_p1_f16nhwc"
ALIKE = "n8c64h27w30_k64r3s3_p1_f16nhwc"


def test_without_a_gpu_there_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["tune", DENSE]) == 2
    assert capsys.readouterr().err == (
        "fastconv: Tuning times kernels on a GPU, and PyTorch finds none on this machine.\n"
    )


def test_without_triton_there_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(rows, "missing", lambda: "Triton is not installed.")
    assert cli.main(["tune", DENSE]) == 2
    assert capsys.readouterr().err == "fastconv: Triton is not installed.\n"


@pytest.fixture
def searched(monkeypatch) -> list[str]:
    """The problems a search was asked about; its every second tile is the fastest and its last one wrong."""
    from fastconv.kernels.triton import tuned
    from fastconv.testing import tune

    asked: list[str] = []

    def search(kernel, problem):
        asked.append(f"{kernel.name} {problem}")
        tiles = (64, 64, 64, 4, 3), (64, 64, 32, 4, 4), (128, 64, 32, 4, 4)
        trials = tune.Trial(tiles[0], 2e-3), tune.Trial(tiles[1], 1e-3), tune.Trial(tiles[2], None, "It is wrong.")
        name = tuned.bucket(kernel.name, problem)
        return tune.Outcome(kernel.name, str(problem), name, tiles[0], tiles[1], 2.0, trials)

    monkeypatch.setattr(tune, "tune", search)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuned, "machine", lambda index=None: "a GPU")
    yield asked
    tuned.forget()


def test_a_bucket_is_searched_once_and_kept(searched, tmp_path, capsys):
    kept, figures = tmp_path / "tiles.json", tmp_path / "figures.json"
    command = ["tune", DENSE, ALIKE, "--kernel", "*igemm*", "--database", str(kept), "--json", str(figures)]
    assert cli.main(command) == 0
    assert searched == [f"conv2d/fprop_igemm_triton {DENSE}"]
    shown = capsys.readouterr().out
    assert "64x64x32x4x4" in shown and "2.00x" in shown and "dropped 128x64x32x4x4" in shown
    ((bucket, entry),) = json.loads(kept.read_text())["machines"]["a GPU"].items()
    assert bucket.startswith("conv2d/fprop_igemm_triton f16nhwc r3s3")
    assert entry == {"tile": [64, 64, 32, 4, 4], "margin": 2.0, "seconds": 1e-3, "problem": DENSE}
    content = json.loads(figures.read_text())
    assert content["kind"] == "tune" and len(content["outcomes"][0]["trials"]) == 3


def test_a_model_gives_its_convolutions(searched, tmp_path, capsys):
    command = ["tune", "tests/cli/samples.py:small", "--train", "--database", str(tmp_path / "tiles.json")]
    assert cli.main(command) == 0
    passes = {line.split()[0].split("/")[1].split("_")[0] for line in searched}
    assert passes == {"fprop", "dgrad", "wgrad"}


def test_where_nothing_takes_the_problem_it_says_so(searched, capsys):
    assert cli.main(["tune", DENSE.replace("f16", "f64")]) == 2
    assert "No Triton kernel takes any of these problems." in capsys.readouterr().err


def test_a_wrong_default_is_a_failure(searched, tmp_path, monkeypatch):
    from fastconv.testing import tune

    search = tune.tune
    monkeypatch.setattr(tune, "tune", lambda *a: replace(search(*a), winner=None, margin=None))
    assert cli.main(["tune", DENSE, "--kernel", "*igemm*", "--database", str(tmp_path / "tiles.json")]) == 1
    assert not (tmp_path / "tiles.json").exists()
