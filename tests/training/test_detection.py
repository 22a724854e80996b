"""Detectors: assignment, loss, decoding, average precision, data with boxes, runs that resume and reach their AP50."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastconv.nn
from fastconv import cli
from fastconv.models import model_info
from fastconv.models.detection import Detections
from fastconv.models.detection.yolo_small import YoloSmall, assign, centers
from fastconv.models.images import CIFAR
from fastconv.training import (
    CheckpointError,
    Data,
    DetectorTrainer,
    Job,
    Recipe,
    Samples,
    load_detector,
    load_predictor,
    open_objects,
    recipe_for,
)
from fastconv.training.augment import Crop, Flip
from fastconv.training.loader import Batches
from fastconv.training.precision import average_precision
from tests.models.references import quick

EMPTY = [-1.0] * 5
SMALL = ("yolo_small", "yolo_v1_small", "rcnn_small", "fast_rcnn_small", "faster_rcnn_small")
# AP50 on held-out shapes after the recipe of each, in minutes of one core.
LEARNED = {"yolo_small": 0.9, "faster_rcnn_small": 0.9, "rcnn_small": 0.9}


def test_cells_learn_the_smallest_object_around_them():
    at = centers(torch.empty(1, 1, 4, 4))
    assert at[:2].tolist() == [[4, 4], [12, 4]]
    targets = torch.tensor([[[1.0, 0, 0, 32, 32], [0, 2, 2, 14, 14], EMPTY], [EMPTY] * 3])
    owner = assign(at, targets).view(2, 4, 4)
    assert owner[0].tolist() == [[1, 1, -1, -1], [1, 1, 0, -1], [-1, 0, 0, -1], [-1, -1, -1, -1]]
    assert (owner[1] == -1).all()
    assert (assign(at, torch.empty(2, 0, 5)) == -1).all()


def perfect(targets: torch.Tensor, side: int, classes: int) -> torch.Tensor:
    """The map [N, 4 + classes, side, side] of a network that is right and sure."""
    blank = torch.zeros(len(targets), 4 + classes, side, side)
    at, owner = centers(blank), assign(centers(blank), targets)
    cells = blank.flatten(2).transpose(1, 2).clone()
    cells[..., 4:] = -20
    for image, cell in (owner >= 0).nonzero().tolist():
        label, *box = targets[image, owner[image, cell]].tolist()
        sides = torch.tensor(box)
        cells[image, cell, :4] = torch.cat([at[cell] - sides[:2], sides[2:] - at[cell]]) / 8
        cells[image, cell, 4 + int(label)] = 20
    return cells.transpose(1, 2).view_as(blank)


def test_a_perfect_map_has_no_loss_and_reads_as_its_objects():
    model = YoloSmall(fastconv.nn, num_classes=3)
    targets = torch.tensor([[[1.0, 4, 6, 30, 28], [2, 36, 30, 60, 62]], [[0.0, 10, 10, 40, 44], EMPTY]])
    output = perfect(targets, 8, 3)
    loss, overlap = model.loss(output, targets)
    assert loss < 1e-4 and overlap == pytest.approx(1)
    found = model.detect(output)
    assert [sorted(d.labels.tolist()) for d in found] == [[1, 2], [0]]
    assert torch.allclose(found[1].boxes, targets[1, :1, 1:], atol=1e-3)
    wanted = [targets[0], targets[1, :1]]
    assert average_precision(found, wanted, 3) == 1
    worse, _ = model.loss(output + 0.5, targets)
    assert worse > loss
    nothing, _ = model.loss(torch.full_like(output, -20), torch.empty(2, 0, 5))
    assert nothing < 1e-4


def detections(*rows: tuple[float, float, int]) -> Detections:
    """(left, score, class) of boxes ten pixels large."""
    boxes = torch.tensor([[left, 0, left + 10, 10] for left, _, _ in rows]).view(-1, 4)
    return Detections(boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]))


def test_average_precision_by_hand():
    wanted = [torch.tensor([[0.0, 0, 0, 10, 10], [0, 50, 0, 60, 10]]), torch.tensor([[0.0, 0, 0, 10, 10]])]
    found = [detections((0, 0.9, 0), (1, 0.8, 0), (50, 0.6, 0)), detections((30, 0.7, 0), (0, 0.5, 0))]
    # By falling score: right, doubled, beside, right, right: precisions 1, 2/4, 3/5, the second raised to 3/5.
    assert average_precision(found, wanted, 1) == pytest.approx((1 + 0.6 + 0.6) / 3)
    assert average_precision(found, wanted, 2) == pytest.approx((1 + 0.6 + 0.6) / 3)  # no object of class 1
    assert average_precision([detections(), detections()], wanted, 1) == 0
    assert average_precision(found, wanted, 1, overlap=0.99) == pytest.approx((1 + 0.6 + 0.6) / 3)
    half = [detections((4, 0.9, 0)), detections()]
    assert average_precision(half, wanted, 1) == 0  # an overlap of 6/14


def test_boxes_follow_their_pictures():
    data = open_objects("shapes", size=64)
    plain, turned = Batches(data, 2, 64, CIFAR), Batches(data, 2, 64, CIFAR, (Flip(),))
    flipped = 0
    for index in range(8):
        (image, objects), (other, moved) = plain._training_sample(0, index), turned._training_sample(0, index)
        if not torch.equal(image, other):
            flipped += 1
            assert torch.equal(image.flip(2), other)
            assert torch.equal(64 - objects[:, [3, 1]], moved[:, [1, 3]])
    assert 0 < flipped < 8
    images, targets = plain(0)
    assert images.shape == (2, 3, 64, 64) and targets.shape[2] == 5
    with pytest.raises(ValueError, match="Pictures with boxes cannot be augmented by random crops"):
        Batches(data, 2, 64, CIFAR, (Crop(),))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (40, 20), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    content = {
        "images": [{"id": 10 + n, "file_name": f"{n}.png"} for n in range(5)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 10 + n, "category_id": 7, "bbox": [n, 2, 10, 12], "iscrowd": 0} for n in range(5)],
    }
    content["annotations"].append({"image_id": 10, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_folders(coco: Path):
    data = open_objects(str(coco), size=32)
    assert (data.classes, len(data.train), len(data.held)) == (("cat", "dog"), 4, 1)
    image, objects = data.train[0]
    n = int(image[0, 0, 0])
    assert objects.tolist() == [[1, n, 2, n + 10, 14]]
    _, targets = Batches(data, 1, 32, CIFAR).held_batch(0)
    left = int(data.held[0][0][0, 0, 0]) * 0.8  # 40 pixels wide to 32, 20 high to 32
    assert torch.allclose(targets[0, 0], torch.tensor([1, left, 3.2, left + 8, 22.4]))


def changed(**parts):
    return lambda content: content | parts


BROKEN = {
    "not JSON": ("no", "is not what COCO's format is"),
    "a list": ("[]", "is not what COCO's format is"),
    "no categories": (lambda c: {k: c[k] for k in c if k != "categories"}, "it lacks 'categories'"),
    "an empty box": (changed(annotations=[{"image_id": 10, "category_id": 7, "bbox": [1, 1, 0, 5]}]), "is empty"),
    "a stranger": (changed(annotations=[{"image_id": 1, "category_id": 7, "bbox": [1, 1, 2, 5]}]), "of image 1"),
    "one picture": (lambda c: c | {"images": c["images"][:1], "annotations": []}, "at least two pictures"),
    "no picture": (
        changed(images=[{"id": n, "file_name": f"{n + 9}.png"} for n in (1, 2)], annotations=[]),
        "not there",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_coco_folders(coco: Path, broken: str):
    change, sentence = BROKEN[broken]
    path = coco / "annotations.json"
    path.write_text(change if isinstance(change, str) else json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_objects(str(coco), size=32)


def test_no_coco_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*annotations\.json"):
        open_objects(str(tmp_path), size=32)


def small_run(
    name: str = "yolo_small", recipe: Recipe | None = None, pictures: int = 24, held: int = 6, epochs: int = 2
) -> DetectorTrainer:
    size = 48 if name == "yolo_small" else None
    data = open_objects("shapes", size=size or model_info(name).image_size)
    few = Data("shapes", data.classes, Samples(pictures, data.train.get), Samples(held, data.held.get), task="boxes")
    recipe = replace(recipe or recipe_for(name), epochs=epochs, batch=8)
    return DetectorTrainer(Job(name, "shapes", recipe, size=size), data=few)


def test_a_resumed_detector_has_the_same_bits(tmp_path: Path):
    whole, part, resumed = small_run(), small_run(), small_run()
    whole.run()
    part.run(stop=lambda: part.step >= 2)
    part.save(tmp_path / "run.safetensors")
    resumed.load(tmp_path / "run.safetensors")
    resumed.run()
    assert resumed.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    part.save_weights(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="weights for use"):
        resumed.load(tmp_path / "weights.safetensors")


def test_a_checkpoint_detects(tmp_path: Path, capsys):
    """Boxes come back in the picture's own pixels; the command prints what the function finds."""
    run = small_run()
    run.run(stop=lambda: True)
    run.save_weights(tmp_path / "weights.safetensors")
    picture = tmp_path / "wide.png"
    Image.effect_noise((96, 48), 80).convert("RGB").save(picture)
    detector = load_detector("yolo_small", tmp_path / "weights.safetensors")
    found = detector(picture, score=0.0)
    assert len(found.boxes) and found.boxes[:, 2].max() > 48
    assert found.boxes.max() <= 96 and found.boxes[:, [1, 3]].max() <= 48
    assert (found.scores.diff() <= 0).all()
    words = ("predict", "yolo_small", str(picture), "--checkpoint", str(tmp_path / "weights.safetensors"))
    figures = tmp_path / "figures.json"
    assert cli.main([*words, "--json", str(figures)]) == 0
    (image,) = json.loads(figures.read_text())["images"]
    assert len(image["found"]) == len(detector(picture).boxes)
    drawn = Image.open(tmp_path / "wide.found.png")  # beside the picture, which stays as it is
    assert drawn.size == (96, 48)
    assert cli.main([*words, "--score", "0", "--out", str(tmp_path / "drawn")]) == 0
    assert Image.open(tmp_path / "drawn" / "wide.found.png").tobytes() != Image.open(picture).tobytes()
    for wrong, sentence in (
        (("--ten-crops",), "a detector has boxes"),
        (("--score", "1.5"), "--score must be 0 to 1, but is 1.5."),
        (words[-2:], "takes one --checkpoint, and there are 2"),
    ):
        assert cli.main([*words, *wrong]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="is one of yolo_small, not of lenet5"):
        load_predictor("lenet5", [tmp_path / "weights.safetensors"])
    with pytest.raises(ValueError, match="is not the name of a detector"):
        load_detector("lenet5", tmp_path / "weights.safetensors")


@pytest.mark.parametrize("name", ["yolo_v1_small", "rcnn_small", "fast_rcnn_small", "faster_rcnn_small"])
def test_small_detectors_learn_from_shapes(name: str):
    """The loop, the recipe and the loss together: a few pictures again and again, and the loss falls."""
    run = small_run(name, recipe_for(name), pictures=8, held=2, epochs=4)
    run.run()
    losses = [epoch.loss for epoch in run.history]
    assert losses[-1] < 0.97 * losses[0]
    assert all(0 <= epoch.held_accuracy <= 1 for epoch in run.history)


@pytest.mark.parametrize("name", quick(SMALL, ("yolo_v1_small", "faster_rcnn_small")))
def test_detectors_learn_in_bfloat16(name: str):
    """A step under autocast has a loss near that of float32, from the same weights, pictures and regions."""
    losses = []
    for precision in ("float32", "bfloat16"):
        run = small_run(name, pictures=8, held=2)
        run.job = replace(run.job, precision=precision)
        losses.append(run._train_step())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in run.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


@pytest.mark.full
@pytest.mark.parametrize(("name", "precision"), LEARNED.items())
def test_a_detector_finds_shapes(name: str, precision: float):
    trainer = DetectorTrainer(Job(name, "shapes", recipe_for(name)))
    trainer.run()
    assert trainer.history[-1].held_accuracy >= precision
