"""Box operations against torchvision's Python forms where it has them, else against the definition, pixel by pixel."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from fastconv.functional import boxes as ours
from tests import third_party

torchvision = third_party.torchvision().ops


def random_boxes(count: int, seed: int = 0, size: float = 40.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * size
    return torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=generator) * size / 2], dim=1)


def test_overlaps_are_torchvisions():
    a, b = random_boxes(30), random_boxes(20, seed=1)
    assert torch.equal(ours.box_area(a), torchvision.box_area(a))
    assert torch.allclose(ours.box_iou(a, b), torchvision.box_iou(a, b))
    pairs = ours.generalized_iou(a[:20], b)
    assert torch.allclose(pairs, torchvision.generalized_box_iou(a[:20], b).diagonal(), atol=1e-6)
    assert (pairs[:, None] < 0).any()  # boxes that do not touch


def naive_nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    stays: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i].item()):
        if all(ours.box_iou(boxes[index][None], boxes[other][None]).item() <= threshold for other in stays):
            stays.append(index)
    return stays


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression(monkeypatch, threshold: float, block: int):
    monkeypatch.setattr(ours, "_BLOCK", block)
    boxes, scores = random_boxes(50), torch.rand(50)
    assert ours.nms(boxes, scores, threshold).tolist() == naive_nms(boxes, scores, threshold)
    groups = torch.arange(50) % 3
    apart = [index for g in range(3) for index in _group(boxes, scores, groups, g, threshold)]
    assert sorted(ours.batched_nms(boxes, scores, groups, threshold).tolist()) == sorted(apart)
    order = scores[ours.batched_nms(boxes, scores, groups, threshold)]
    assert (order.diff() <= 0).all()


def _group(boxes: Tensor, scores: Tensor, groups: Tensor, group: int, threshold: float) -> list[int]:
    members = (groups == group).nonzero().flatten()
    return members[naive_nms(boxes[members], scores[members], threshold)].tolist()


def test_nothing_to_suppress():
    assert ours.nms(torch.empty(0, 4), torch.empty(0), 0.5).tolist() == []
    assert ours.batched_nms(torch.empty(0, 4), torch.empty(0), torch.empty(0), 0.5).dtype == torch.int64


def regions(seed: int = 2) -> Tensor:
    boxes = random_boxes(12, seed, size=60) - 5  # some reach out of the image
    boxes[0] = torch.tensor([3.0, 4.0, 3.0, 4.0])  # an empty one
    boxes[1] = torch.tensor([200.0, 200.0, 220.0, 220.0])  # one beside it
    return torch.cat([torch.arange(12)[:, None] % 2, boxes], dim=1)


@pytest.mark.parametrize("small", [0, 64 * 64])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("output", "scale", "ratio"), [(7, 0.5, 2), ((3, 5), 1.0, 1), ((2, 4), 0.25, 3)])
def test_roi_align_is_torchvisions(monkeypatch, output, scale: float, ratio: int, aligned: bool, small: int):
    """Regions within the image: torchvision's Python form repeats the border without end, its compiled one does not."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(ours, "_SMALL_MAP", small)  # both ways to compute it
    x = torch.rand(2, 3, 20, 24, dtype=torch.float64, requires_grad=True)
    rois = regions().double()
    rois[:, 1:] = rois[:, 1:].clamp(0, 19 / scale)
    fallback = sys.modules["torchvision.ops.roi_align"]._roi_align
    rows, columns = (output, output) if isinstance(output, int) else output
    theirs = fallback(x, rois, scale, rows, columns, ratio, aligned)
    result = ours.roi_align(x, rois, output, scale, ratio, aligned)
    assert torch.allclose(result, theirs)
    weight = torch.rand_like(result)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (result, theirs)]
    assert torch.allclose(*gradients)


def test_no_regions_are_no_features():
    assert ours.roi_align(torch.rand(1, 3, 8, 8), torch.empty(0, 5), 2).shape == (0, 3, 2, 2)
    assert ours.roi_pool(torch.rand(1, 3, 8, 8), torch.empty(0, 5), 2).shape == (0, 3, 2, 2)


def test_roi_align_beside_the_image_is_nothing():
    x = torch.ones(1, 1, 8, 8)
    rois = torch.tensor([[0.0, 20, 20, 24, 24], [0, 3, 3, 9, 9]])
    result = ours.roi_align(x, rois, 2, 1.0, 2)
    assert not result[0].any()
    assert torch.equal(result[1, 0], torch.tensor([[1.0, 0.5], [0.5, 0.25]]))  # samples at 3.75, 5.25, 6.75, 8.25


def naive_roi_pool(x: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Section 2.1 read literally: bin i of b covers floor(i h / b) to ceil((i + 1) h / b) of the rounded region."""
    result = x.new_zeros(len(rois), x.shape[1], size, size)
    for n, (image, *box) in enumerate(rois.tolist()):
        left, top, right, bottom = (math.floor(v * scale + 0.5) for v in box)
        height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
        for i in range(size):
            for j in range(size):
                values = [
                    x[int(image), :, y, z]
                    for y in range(top + math.floor(i * height / size), top + math.ceil((i + 1) * height / size))
                    for z in range(left + math.floor(j * width / size), left + math.ceil((j + 1) * width / size))
                    if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]
                ]
                if values:
                    result[n, :, i, j] = torch.stack(values).amax(0)
    return result


@pytest.mark.parametrize(("size", "scale"), [(3, 0.5), (2, 1.0), (7, 0.25)])
def test_roi_pool_is_the_definition(size: int, scale: float):
    x = torch.randn(2, 3, 20, 24)
    assert torch.equal(ours.roi_pool(x, regions(), size, scale), naive_roi_pool(x, regions(), size, scale))


def test_gradients_of_roi_pool_are_the_definition_s():
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64, requires_grad=True)
    results = [pool(x, regions().double(), 3, 0.5) for pool in (ours.roi_pool, naive_roi_pool)]
    weight = torch.rand_like(results[0])
    own, defined = (torch.autograd.grad((y * weight).sum(), x)[0] for y in results)
    assert torch.allclose(own, defined)


def test_operators_keep_torchs_rules():
    """Shapes, gradients and tracing of those that loop over values."""
    x, boxes = torch.rand(2, 3, 20, 24, dtype=torch.float64, requires_grad=True), random_boxes(9)
    for groups in (None, torch.arange(9) % 2):
        torch.library.opcheck(ours._nms, (boxes, torch.rand(9), groups, 0.5))
    torch.library.opcheck(ours._roi_pool, (x, regions(), 3, 2, 0.5))
    torch.library.opcheck(ours._roi_pool_dgrad, (torch.rand(12, 3, 3, 2, dtype=x.dtype), x.detach(), regions(), 0.5))


MISTAKES = {
    "boxes": (lambda: ours.box_iou(torch.rand(3), torch.rand(2, 4)), r"boxes1 must be boxes \[n, 4\]"),
    "scores": (lambda: ours.nms(torch.rand(3, 4), torch.rand(2), 0.5), "Every box needs one score"),
    "regions": (lambda: ours.roi_align(torch.rand(1, 1, 4, 4), torch.rand(3, 4), 2), r"regions \[n, 5\]"),
    "input": (lambda: ours.roi_pool(torch.rand(1, 4, 4), torch.rand(3, 5), 2), r"input must be \[N, C, H, W\]"),
    "ratio": (lambda: ours.roi_align(torch.rand(1, 1, 4, 4), torch.rand(3, 5), 2, 1.0, 0), "sampling_ratio=0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str):
    call, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=sentence):
        call()
