"""Detectors of regions as exported programs: whole, from pictures to boxes, whatever the pictures show."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import _pytree as pytree

from fastconv.models.detection import Detections, Finder, rcnn
from tests.models.references import quick
from tests.models.thin_detectors import THIN

NAMES = [name for name, thin in THIN.items() if thin.parts]
REGIONS = torch.tensor([[0, 4.0, 5, 30, 33], [1, 10, 10, 60, 60], [1, 0, 0, 20, 64]])
SIDES = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


def finder(name: str) -> Finder:
    """Half of the scores for noise are sure enough for it."""
    network = THIN[name].model().eval()
    for key, parameter in network.named_parameters():
        if "cls_score" in key:
            nn.init.normal_(parameter)
    scores = network(pictures()[0]).logits.softmax(1)[:, 1:]
    return Finder(network, score=scores.median().item())


def pictures(height: int = 96, width: int = 96) -> list[Tensor]:
    """Noise, other noise, and a plain picture beside one with a step."""
    noise = torch.randn(2, 2, 3, height, width, generator=torch.Generator().manual_seed(1))
    plain = torch.zeros(2, 3, height, width)
    plain[1, :, :, width // 2 :] = 1
    return [*noise, plain]


def stored(program: ExportedProgram) -> nn.Module:
    """The program as it comes out of a file."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def assert_same(found: object, expected: object) -> None:
    found, expected = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    for ours, own in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, own)


def numbers(found: list[Detections]) -> tuple[int, ...]:
    return tuple(len(own.boxes) for own in found)


@pytest.mark.parametrize("name", NAMES)
def test_whole_detectors_are_programs(name: str):
    """For pictures with different numbers of boxes, and, where proposals are learned, without any."""
    model, seen = finder(name), set()
    program = stored(export(model, (pictures()[0],)))
    for images in pictures():
        expected = model(images)
        seen.add(numbers(expected))
        assert_same(program(images), expected)
    assert len(seen) > 1
    if hasattr(model.network, "rpn"):
        wrong = torch.full_like(images, torch.nan)
        assert not len(model.network(wrong).regions)
        assert numbers(program(wrong)) == numbers(model(wrong)) == (0, 0)


@pytest.mark.parametrize("name", quick(NAMES, ("rcnn", "fast_rcnn", "faster_rcnn_vgg")))
def test_programs_for_any_height_and_width(name: str):
    """The network's own output; some of the sizes have fewer anchors than the network may propose."""
    network = finder(name).network
    if hasattr(network, "rpn"):
        network.rpn.plan = replace(network.rpn.plan, before=(300, 300))
    program = stored(export(network, (pictures(96, 128)[0],), dynamic_shapes=(SIDES,)))
    for size in ((128, 96), (75, 101)):
        for images in pictures(*size)[1:]:
            assert_same(program(images), network(images))


@pytest.mark.parametrize("name", quick(NAMES, ("rcnn", "fast_rcnn")))
def test_regions_found_beforehand(name: str, monkeypatch: pytest.MonkeyPatch):
    """Any number of them, in any order, and none at all; what is no picture has no boxes."""
    model = finder(name)
    monkeypatch.setattr(type(model.network), "regions", None)
    images = pictures()[0]
    program = export(model, (images, REGIONS), dynamic_shapes=({}, {0: Dim.DYNAMIC})).module()
    for regions in (REGIONS.flip(0), REGIONS[:1], REGIONS[1:], REGIONS.repeat(5, 1)):
        expected = model(images, regions)
        assert sum(numbers(expected))
        assert_same(program(images, regions), expected)
    for nothing in ((images, REGIONS[:0]), (images * torch.nan, REGIONS)):
        assert numbers(program(*nothing)) == numbers(model(*nothing)) == (0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_regions_are_rows_of_five(name: str):
    with pytest.raises(ValueError, match=r"regions must be \[R, 5\], but has shape \[3, 4\]"):
        finder(name)(pictures()[0], REGIONS[:, 1:])


def test_regions_are_warped_in_any_order():
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(rcnn.warped(images, REGIONS.flip(0), 16), rcnn.warped(images, REGIONS, 16).flip(0))
