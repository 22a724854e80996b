"""YOLOv1: the paper's networks, cells and loss, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastconv.models import create_model
from fastconv.models.detection.yolo_v1 import BOXES, GRID
from tests.models.thin_detectors import THIN

SIZE, CLASSES = 112, 3
CELL = SIZE / GRID
TARGETS = torch.tensor([[[1.0, 8, 10, 40, 50], [2, 70, 64, 108, 110]], [[0.0, 20, 30, 84, 90], [-1.0] * 5]])


def perfect(second: bool = False) -> Tensor:
    """What a network that is right says of TARGETS, in its first or its second boxes."""
    output = torch.zeros(2, GRID, GRID, 5 * BOXES + CLASSES)
    for image, rows in enumerate(TARGETS):
        for label, left, top, right, bottom in rows[rows[:, 0] >= 0].tolist():
            x, y = (left + right) / 2 / CELL, (top + bottom) / 2 / CELL
            roots = ((right - left) / SIZE) ** 0.5, ((bottom - top) / SIZE) ** 0.5
            cell = output[image, int(y), int(x)]
            cell[5 * second : 5 * second + 5] = torch.tensor([x % 1, y % 1, *roots, 1.0])
            cell[5 * BOXES + int(label)] = 1
    return output


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("size", THIN["yolo_v1"].sizes)
def test_a_perfect_map_has_no_loss_and_reads_as_its_objects(size: int, second: bool):
    """Of every size: codes are shares of a cell and of the picture, and boxes pixels."""
    model = THIN["yolo_v1"].model(size=size)
    output = perfect(second)
    targets = TARGETS.clone()
    targets[..., 1:] *= size / SIZE
    loss, overlap = model.loss(output, targets)
    assert loss < 1e-8 and overlap == pytest.approx(1)
    found = model.detect(output)
    assert [sorted(d.labels.tolist()) for d in found] == [[1, 2], [0]]
    assert torch.allclose(found[1].boxes, targets[1, :1, 1:], atol=1e-3)
    assert torch.allclose(found[1].scores, torch.ones(1))


@pytest.mark.parametrize(
    ("where", "name", "loss"),
    [
        (0, "boxes", 5 * 0.1**2),  # x of the responsible box, weighted by lambda_coord
        (4, "objects", 0.1**2),
        (9, "no objects", 0.5 * 0.1**2),  # the confidence of the other box, by lambda_noobj
        (10, "classes", 0.1**2),
    ],
)
def test_every_error_counts_as_equation_3_says(where: int, name: str, loss: float):
    """A tenth too much in one value of one cell; its confidence is to be the overlap, which x leaves below one."""
    model, output = THIN["yolo_v1"].model(), perfect()
    output[1, int(60 / CELL), int(52 / CELL), where] += 0.1
    parts = model.lesson(output, TARGETS).parts
    assert (parts[name].total / parts[name].count).item() == pytest.approx(loss / 2, rel=1e-3)  # of two images
    others = {other for other in parts if other not in (name, "objects")}
    assert all(parts[other].total < 1e-8 for other in others)


def test_an_empty_cell_learns_its_confidence_alone():
    model, output = THIN["yolo_v1"].model(), perfect()
    output[1, 0, 0] += 0.1
    parts = model.lesson(output, TARGETS).parts
    assert parts["no objects"].total.item() == pytest.approx(0.5 * 2 * 0.1**2)
    assert sum(part.total for part in parts.values()).item() == pytest.approx(0.5 * 2 * 0.1**2)


@pytest.mark.parametrize(("name", "convolutions"), [("yolo_v1", 24), ("yolo_v1_fast", 9)])
def test_the_papers_networks(name: str, convolutions: int):
    with torch.device("meta"):
        model = create_model(name)
        assert model(torch.empty(1, 3, 448, 448)).shape == (1, 7, 7, 30)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    with pytest.raises(RuntimeError, match="takes images of 448 x 448 pixels"):
        model(torch.empty(1, 3, 416, 416))


@pytest.mark.parametrize(("name", "smallest"), [("yolo_v1", 31), ("yolo_v1_fast", 64), ("yolo_v1_small", 16)])
def test_networks_of_other_sizes_have_the_same_cells(name: str, smallest: int):
    with torch.device("meta"):
        for size in (smallest, 416):
            model = create_model(name, image_size=size).eval()
            assert model(torch.empty(1, 3, size, size)).shape[:3] == (1, GRID, GRID)
        for size in (smallest - 1, 416.0):
            said = f"image_size={size} of YoloV1 must be an integer of at least {smallest}"
            with pytest.raises(ValueError, match=said):
                create_model(name, image_size=size)
