"""Faster R-CNN against torchvision's: keys, first weights, detections, losses, gradients; and its parts by hand."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fastconv.functional import boxes as box_functions
from fastconv.models import create_model, model_info
from fastconv.models.detection.faster_rcnn import FasterRCNN
from fastconv.models.detection.matching import NOTHING, UNSURE, Sampling, choose, draw, match
from tests.models.references import LAYERS, relative_error
from tests.third_party import torchvision

TOLERANCE = 1e-4
SCORE = 0.011  # of untrained networks, whose 91 classes are nearly as likely as each other
# Height is what torchvision's shorter side is set to, so that it leaves the pictures as they are. Width is padded.
HEIGHT, WIDTH, LEARNED = 64, 72, 40
TARGETS = torch.tensor([[[1.0, 4, 6, 60, 50], [2, 36, 30, 60, 62]], [[0.0, 10, 10, 70, 60], [-1.0] * 5]])


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Torchvision's, in Python alone: its compiled operators may be missing, and our suppression has its own tests."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    vision = torchvision()
    monkeypatch.setattr(sys.modules["torchvision.ops.boxes"], "nms", box_functions.nms)
    torch.manual_seed(0)
    network = vision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=HEIGHT,
        rpn_post_nms_top_n_train=LEARNED,
        rpn_post_nms_top_n_test=LEARNED,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        box_score_thresh=SCORE,
        _skip_resize=True,  # which draws a random number to choose among one size
    )
    return network


def ours_like(theirs: nn.Module, layers: str = "fastconv") -> FasterRCNN:
    with torch.device("meta"):
        network = create_model("fasterrcnn_resnet50_fpn", layers=layers)
    network = network.to_empty(device="cpu")
    network.load_state_dict(theirs.state_dict())
    network.rpn.plan = replace(network.rpn.plan, after=(LEARNED, LEARNED))
    return network


def images() -> Tensor:
    return torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))


def test_keys_and_first_weights_are_torchvisions(theirs: nn.Module):
    torch.manual_seed(0)
    ours = create_model("fasterrcnn_resnet50_fpn").state_dict()
    assert list(ours) == list(theirs.state_dict())
    assert all(torch.equal(ours[key], value) for key, value in theirs.state_dict().items())


def test_counts_are_those_of_the_published_weights():
    """There the batch norms are frozen, so theirs do not count."""
    weights = torchvision().models.get_model_weights("fasterrcnn_resnet50_fpn").COCO_V1
    info = model_info("fasterrcnn_resnet50_fpn")
    with torch.device("meta"):
        norms = [m for m in create_model(info.name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert info.parameters - sum(2 * norm.num_features for norm in norms) == weights.meta["num_params"]
    assert info.multiply_adds / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.006)  # given in 0.01 G
    assert info.classes + 1 == len(weights.meta["categories"])


@pytest.mark.parametrize("layers", LAYERS)
def test_detections_are_torchvisions(theirs: nn.Module, layers: str):
    """Scores in float32; in float64, where no two are equal but for rounding, which things they are and where."""
    ours, x = ours_like(theirs, layers).eval(), images()
    with torch.no_grad():
        single = theirs.eval()(list(x)), ours.detect(ours(x), score=SCORE)
        double = theirs.double()(list(x.double())), ours.double().detect(ours(x.double()), score=SCORE)
    for other, own in zip(*single, strict=True):
        assert len(own.boxes) > 10
        assert relative_error(own.scores, other["scores"]) <= TOLERANCE
    for other, own in zip(*double, strict=True):
        assert torch.equal(own.labels + 1, other["labels"])
        assert relative_error(own.boxes, other["boxes"]) <= TOLERANCE
        assert relative_error(own.scores, other["scores"]) <= TOLERANCE


@pytest.mark.parametrize("layers", LAYERS)
def test_losses_and_gradients_are_torchvisions(theirs: nn.Module, layers: str):
    """In float64, like those of the classifiers: batch norm over two images multiplies the rounding of float32."""
    theirs = theirs.double().train()
    ours, x, targets = ours_like(theirs, layers).double().train(), images().double(), TARGETS.double()
    ours.load_state_dict(theirs.state_dict())
    objects = [rows[rows[:, 0] >= 0] for rows in targets]
    torch.manual_seed(5)  # the same anchors and regions are drawn
    expected = theirs(list(x), [{"boxes": rows[:, 1:], "labels": rows[:, 0].long() + 1} for rows in objects])
    torch.manual_seed(5)
    output = ours.learn(x, targets)
    parts = ours.lesson(output, targets).parts
    assert {name: (part.total / part.count).item() for name, part in parts.items()} == pytest.approx(
        {name: loss.item() for name, loss in expected.items()}, rel=TOLERANCE
    )
    sum(expected.values()).backward()
    ours.loss(output, targets)[0].backward()
    gradients = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, gradients[key]) <= TOLERANCE, key


def test_an_anchor_belongs_to_what_it_overlaps():
    objects = torch.tensor([[0.0, 0, 10, 10], [100, 100, 101, 110]])
    anchors = torch.tensor([[0.0, 0, 10, 9], [0, 0, 10, 5], [50, 50, 60, 60], [100, 100, 110, 110]])
    plain = Sampling(8, 0.5, object=0.7, nothing=0.3)
    assert match(objects, anchors, plain).tolist() == [0, UNSURE, NOTHING, NOTHING]
    assert match(objects, anchors, replace(plain, force=True)).tolist() == [0, UNSURE, NOTHING, 1]
    assert match(objects, anchors, replace(plain, least=0.05)).tolist() == [0, UNSURE, UNSURE, NOTHING]
    assert match(torch.empty(0, 4), anchors, plain).tolist() == [NOTHING] * 4


def test_what_is_drawn_is_objects_up_to_a_share():
    matched = torch.tensor([0] * 10 + [NOTHING] * 20 + [UNSURE] * 5)
    found, ground = draw(matched, Sampling(12, 0.25))
    assert (len(found), len(ground)) == (3, 9)
    assert (matched[found] == 0).all() and (matched[ground] == NOTHING).all()
    assert len(set(found.tolist())) == 3 and len(set(ground.tolist())) == 9
    found, ground = draw(matched, Sampling(100, 0.5))
    assert (len(found), len(ground)) == (10, 20)


def test_objects_are_regions_of_their_own_class():
    objects = torch.tensor([[2.0, 0, 0, 10, 10]])
    sample = choose([torch.tensor([[40.0, 40, 50, 50]])], [objects], Sampling(8, 0.5), (1.0,) * 4)
    assert sample.labels.tolist() == [0, 3]
    assert sample.regions.tolist() == [[0, 40, 40, 50, 50], [0, 0, 0, 10, 10]]
    assert not sample.goals.any()  # what is learned of the ground, and of a region that is its object


def test_codes_are_torchvisions():
    from fastconv.functional.boxes import clip_boxes, decode_boxes, encode_boxes

    vision = torchvision()
    coder = vision.models.detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    corners = torch.rand(2, 20, 2) * 50
    boxes, anchors = torch.cat([corners, corners + 1 + 30 * torch.rand(2, 20, 2)], dim=2)
    codes = encode_boxes(boxes, anchors, coder.weights)
    assert torch.allclose(codes, coder.encode_single(boxes, anchors), atol=1e-5)
    assert torch.allclose(decode_boxes(codes, anchors, coder.weights), boxes, atol=1e-4)
    wild = torch.randn(20, 4) * 100
    assert torch.allclose(decode_boxes(wild, anchors, coder.weights), coder.decode_single(wild, anchors))
    clipped = clip_boxes(boxes - 20, (15, 30))
    assert torch.equal(clipped, vision.ops.clip_boxes_to_image(boxes - 20, (15, 30)))


def test_the_paper_counts_two_classes_an_anchor():
    """Section 3.1: an output layer of 2.8 x 10^4 parameters on VGG-16."""
    with torch.device("meta"):
        head = create_model("faster_rcnn_vgg16").rpn.head
    assert head.cls_logits.weight.numel() + head.bbox_pred.weight.numel() == 512 * (4 + 2) * 9
    assert math.isclose(512 * (4 + 2) * 9, 2.8e4, rel_tol=0.02)
