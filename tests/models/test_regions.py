"""Selective search and what is cut out by it."""

from __future__ import annotations

import sys

import pytest
import torch

from fastconv.functional.boxes import box_iou
from fastconv.models.detection.rcnn import warped
from fastconv.models.detection.search import searched, selective_search
from fastconv.training.shapes import draw

MOST = 100


def test_shapes_are_among_the_regions():
    """Nearly every shape has a region that overlaps it by half, among fewer than a hundred."""
    overlaps = []
    for number in range(8):
        picture = draw(0, number, 96, count=(1, 4), span=(0.2, 0.5))
        boxes = selective_search(picture.image.float(), MOST)
        assert 1 < len(boxes) <= MOST
        assert boxes[0].tolist() == [0, 0, 96, 96]
        assert boxes.min() >= 0 and boxes.max() <= 96 and ((boxes[:, 2:] - boxes[:, :2]) >= 6).all()
        assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
        overlaps.append(box_iou(picture.boxes, boxes).max(1).values)
    assert (torch.cat(overlaps) >= 0.5).float().mean() >= 0.95


def test_most_regions_are_the_first():
    image = draw(0, 1, 64, count=(3, 3)).image.float()
    assert torch.equal(selective_search(image, 3), selective_search(image, MOST)[:3])
    regions = searched(torch.stack([image, image]), 3)
    assert regions[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_plain_image_is_one_region():
    assert selective_search(torch.zeros(3, 32, 40), MOST).tolist() == [[0, 0, 40, 32]]


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        selective_search(torch.zeros(3, 32, 40), MOST)


def test_regions_are_warped_with_their_context():
    """16 of 227 pixels on every side lie around the region; outside the image is nothing."""
    image = torch.arange(40.0).expand(1, 3, 30, 40) + 1  # a value is its column's number
    regions = torch.tensor([[0.0, 10, 5, 20, 25], [0, 0, 0, 40, 30]])
    found = warped(image, regions, 227)
    assert found.shape == (2, 3, 227, 227)
    inside = found[0, 0, 113, [16, 113, 211]]
    assert torch.allclose(inside, torch.tensor([10.5, 15.5, 20.5]), atol=0.1)
    assert not found[1, :, :12].any() and not found[1, :, :, :12].any()
    assert found[1, 0, 113, 18:208].min() > 0
