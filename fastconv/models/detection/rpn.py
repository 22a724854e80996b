"""The region proposal network: at every place of a map, which of a few anchors hold something, and how they lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.functional.boxes import batched_nms, clip_boxes, decode_boxes, encode_boxes
from fastconv.models.detection.common import Part, full
from fastconv.models.detection.matching import Sampling, draw, match, with_images
from fastconv.models.tracing import whole

_LEAST_SIDE = 1e-3  # pixels; smaller proposals are none
SMOOTH = 1 / 9  # where the loss of codes turns from square to straight


_SAMPLING = Sampling(256, 0.5, object=0.7, nothing=0.3, force=True)


@dataclass(frozen=True)
class Plan:
    """Where anchors lie, and which proposals stay.

    `sizes` are the roots of the anchors' areas in pixels, those of every map; `ratios` height over width, for all.
    """

    sizes: tuple[tuple[int, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    before: tuple[int, int] = (2000, 1000)  # of a map, before suppression: to learn, to detect
    after: tuple[int, int] = (2000, 1000)  # of an image, after it
    overlap: float = 0.7
    sampling: Sampling = _SAMPLING
    inside: bool = False  # anchors that cross the image's border teach nothing


class Answers(NamedTuple):
    """What the head says of all anchors of all maps: objectness [N, A], codes [N, A, 4], anchors of each map."""

    objectness: Tensor
    codes: Tensor
    anchors: tuple[Tensor, ...]


class RPNHead(nn.Module):
    """A 3x3 convolution, and two of 1x1 on it: objectness [N, A * outputs, H, W] and codes [N, A * 4, H, W].

    `outputs` is 1 for a logistic objectness, 2 for the paper's two classes, nothing and something.
    """

    def __init__(self, layers: ModuleType, channels: int, anchors: int, outputs: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Sequential(layers.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)))
        self.cls_logits = layers.Conv2d(channels, anchors * outputs, 1)
        self.bbox_pred = layers.Conv2d(channels, anchors * 4, 1)
        for layer in (self.conv[0][0], self.cls_logits, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return self.cls_logits(x), self.bbox_pred(x)


class RPN(nn.Module):
    """Ren, He, Girshick, Sun: Faster R-CNN, 2015, section 3.1: proposals from the maps of a network."""

    def __init__(self, layers: ModuleType, channels: int, plan: Plan, outputs: int = 1) -> None:
        super().__init__()
        self.plan = plan
        self.head = RPNHead(layers, channels, len(plan.sizes[0]) * len(plan.ratios), outputs)

    def forward(self, maps: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The head's answers for every map."""
        return [self.head(features) for features in maps]

    def taught(
        self, maps: list[Tensor], objects: list[Tensor], images: Tensor, multiple: int
    ) -> tuple[list[Tensor], dict[str, Part]]:
        """Proposals [n, 4] of every image to learn from, and the loss for objects [m, 5] of every image."""
        size = tuple(images.shape[2:])
        answers = read(self.plan, self(maps), _padded(size, multiple))
        return proposals(answers, self.plan, size, learning=True), lesson(answers, self.plan, objects, size)


def read(plan: Plan, answers: list[tuple[Tensor, Tensor]], padded: tuple[int, int]) -> Answers:
    """The answers with their anchors, for images that were padded to that height and width."""
    objectness, codes, anchors = [], [], []
    for (logits, boxes), sizes in zip(answers, plan.sizes, strict=True):
        height, width = boxes.shape[2:]
        own = _anchors(sizes, plan.ratios, (height, width), (padded[0] // height, padded[1] // width))
        anchors.append(own.to(boxes))
        objectness.append(_objectness(_rows(logits, len(sizes) * len(plan.ratios))))
        codes.append(_rows(boxes, len(sizes) * len(plan.ratios)))
    return Answers(full(torch.cat(objectness, dim=1)), full(torch.cat(codes, dim=1)), tuple(anchors))


@torch.no_grad()
def proposals(answers: Answers, plan: Plan, size: tuple[int, int], learning: bool) -> list[Tensor]:
    """The boxes [n, 4] of every image of `size` (height, width) that most likely hold something."""
    objectness, codes = answers.objectness.detach(), answers.codes.detach()
    before, after = plan.before[not learning], plan.after[not learning]
    lengths = [own.shape[0] for own in answers.anchors]
    starts = [sum(lengths[:level]) for level in range(len(lengths))]
    best = [
        own.topk(min(before, own.shape[1]), dim=1).indices + start
        for own, start in zip(objectness.split(lengths, dim=1), starts, strict=True)
    ]
    level = torch.cat([torch.full((own.shape[1],), number) for number, own in enumerate(best)])
    level, best, anchors = level.to(codes.device), torch.cat(best, dim=1), torch.cat(answers.anchors)
    found = []
    for logits, own, which in zip(objectness, codes, best, strict=True):
        boxes = clip_boxes(decode_boxes(own[which], anchors[which]), size)
        large = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST_SIDE).all(dim=1)
        boxes, scores = boxes[large], logits[which][large].sigmoid()
        found.append(boxes[batched_nms(boxes, scores, level[large], plan.overlap)[:after]])
    return found


def lesson(answers: Answers, plan: Plan, objects: list[Tensor], size: tuple[int, int]) -> dict[str, Part]:
    """The parts of the loss for objects [m, 5] of every image: of objectness and of codes."""
    anchors = torch.cat(answers.anchors)
    crossing = (anchors != clip_boxes(anchors, size)).any(dim=1) if plan.inside else None
    wrong, moved, count = answers.objectness.new_zeros(()), answers.codes.new_zeros(()), 0
    for rows, objectness, codes in zip(objects, answers.objectness, answers.codes, strict=True):
        matched = match(rows[:, 1:], anchors, plan.sampling)
        if crossing is not None:
            matched[crossing] = -2
        found, ground = draw(matched, plan.sampling)
        drawn = torch.cat([found, ground])
        labels = (matched[drawn] >= 0).to(objectness)
        wrong = wrong + F.binary_cross_entropy_with_logits(objectness[drawn], labels, reduction="sum")
        goals = encode_boxes(rows[matched[found], 1:], anchors[found])
        moved = moved + F.smooth_l1_loss(codes[found], goals, beta=SMOOTH, reduction="sum")
        count += len(drawn)
    return {"loss_objectness": Part(wrong, count), "loss_rpn_box_reg": Part(moved, count)}


@whole
def propose(plan: Plan, answers: list[tuple[Tensor, Tensor]], images: Tensor, multiple: int) -> Tensor:
    """Regions [R, 5] of images that were padded to multiples; on the meta device, where nothing is known, as many as
    there may be."""
    if images.is_meta:
        return images.new_empty(len(images) * plan.after[1], 1 + 4)
    size = tuple(images.shape[2:])
    return with_images(proposals(read(plan, answers, _padded(size, multiple)), plan, size, learning=False))


def _padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    height, width = (side + -side % multiple for side in size)
    return height, width


def _anchors(
    sizes: tuple[int, ...], ratios: tuple[float, ...], grid: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """[height * width * A, 4]: for every place of a map, row by row, all ratios of all sizes."""
    shapes = [(size * math.sqrt(ratio), size / math.sqrt(ratio)) for ratio in ratios for size in sizes]
    cell = torch.tensor([[-width, -height, width, height] for height, width in shapes]) / 2
    rows, columns = (torch.arange(count) * step for count, step in zip(grid, stride, strict=True))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    at = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (at + cell.round()).view(-1, 4)


def _rows(answers: Tensor, anchors: int) -> Tensor:
    """[N, A * K, H, W] -> [N, H * W * A, K]."""
    n, _, height, width = answers.shape
    return answers.view(n, anchors, -1, height, width).permute(0, 3, 4, 1, 2).reshape(n, height * width * anchors, -1)


def _objectness(logits: Tensor) -> Tensor:
    """[N, A, 1 or 2] -> [N, A]: of two classes, how much likelier the second is."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
