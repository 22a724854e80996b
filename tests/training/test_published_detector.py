"""`fastconv predict` with torchvision's detector weights: its sizes, names and frozen batch norms, and its boxes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fastconv import cli
from fastconv.functional import boxes as box_functions
from fastconv.models import coco_labels, sample_photographs
from fastconv.training import load_detector
from tests.third_party import torchvision

NAME = "fasterrcnn_resnet50_fpn"
SCORE = 0.2
SURE = 80.0  # times an untrained classifier's weights: scores far from each other
CALM = 0.3  # of what a residual block adds, so that sixteen of them do not make activations explode
TINY = 1e-4  # of the variances, beside which an epsilon of 1e-5 is no rounding


def published_like() -> nn.Module:
    """Torchvision's network as its COCO weights have it: no epsilon in batch norms that are frozen, 91 classes."""
    vision = torchvision()
    frozen = vision.ops.misc.FrozenBatchNorm2d
    torch.manual_seed(0)
    network = vision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, box_score_thresh=SCORE
    )
    for module in list(network.backbone.modules()):
        for key, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                fixed = frozen(norm.num_features, eps=0.0)
                fixed.running_var.uniform_(0.5 * TINY, 1.5 * TINY)
                fixed.weight.mul_(TINY**0.5 * (CALM if key == "bn3" else 1.0))
                setattr(module, key, fixed)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.weight.mul_(SURE)
    return network.eval()


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    network = published_like()
    monkeypatch.setattr(sys.modules["torchvision.ops.boxes"], "nms", box_functions.nms)
    return network


@pytest.mark.parametrize("sides", [(72, 24), pytest.param((40, 56), marks=pytest.mark.full)], ids=["longer", "shorter"])
def test_the_command_finds_what_torchvision_finds(theirs: nn.Module, sides: tuple[int, int], tmp_path: Path):
    """Pictures whose longer or shorter side decides the size; boxes are told to a tenth of a pixel."""
    picture, weights, figures = tmp_path / "cat.png", tmp_path / "coco.pth", tmp_path / "found.json"
    dict(sample_photographs())["chelsea"].resize(sides, Image.Resampling.BOX).save(picture)
    torch.save(theirs.state_dict(), weights)
    with torch.no_grad():
        (expected,) = theirs([torchvision().transforms.functional.pil_to_tensor(Image.open(picture)).float() / 255])
    words = ["predict", NAME, str(picture), "--checkpoint", str(weights), "--score", str(SCORE), "--json", str(figures)]
    assert cli.main(words) == 0
    (image,) = json.loads(figures.read_text())["images"]
    found = image["found"]
    assert len(found) >= 5
    assert [thing["class"] for thing in found] == [coco_labels()[label - 1] for label in expected["labels"].tolist()]
    assert [thing["score"] for thing in found] == pytest.approx(expected["scores"].tolist(), rel=1e-3)
    boxes = torch.tensor([thing["box"] for thing in found])
    assert (boxes - expected["boxes"]).abs().max() <= 0.06


def test_norms_that_were_trained_keep_their_epsilon(tmp_path: Path):
    """Torchvision's network without published weights counts batches, and has the epsilon of any batch norm."""
    with torch.device("meta"):
        network = torchvision().models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(
        {key: torch.zeros_like(v, device="cpu") for key, v in network.state_dict().items()}, tmp_path / "own.pth"
    )
    for file, epsilon in (("own.pth", 1e-5), ("frozen.pth", 0.0)):
        norms = [m for m in load_detector(NAME, tmp_path / file).network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 53 and all(norm.eps == epsilon for norm in norms)
        state = torch.load(tmp_path / "own.pth")
        torch.save({key: v for key, v in state.items() if "num_batches" not in key}, tmp_path / "frozen.pth")


BAD = {
    "nothing.pth": "There is no checkpoint",
    "cut.pth": "is damaged, or holds more than weights.",
    "other.pth": "does not fit FasterRCNN",
    "cut.safetensors": "is damaged or no safetensors file",
}


@pytest.mark.parametrize("file", BAD)
def test_bad_weights_get_a_sentence(file: str, tmp_path: Path, capsys):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "other.pth").read_bytes()[:100])
    picture = tmp_path / "gray.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert cli.main(["predict", NAME, str(picture), "--checkpoint", str(tmp_path / file)]) == cli.USAGE
    err = capsys.readouterr().err
    assert err.startswith("fastconv: ") and err.count("\n") == 1 and BAD[file] in err


def test_names_are_cocos():
    published = torchvision().models._meta._COCO_CATEGORIES
    assert ("__background__", *coco_labels()) == tuple(published)
