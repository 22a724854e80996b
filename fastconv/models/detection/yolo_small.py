"""A small YOLO of today's kind: no anchors, no objectness, boxes as distances, its labels set by its own overlap."""

from __future__ import annotations

import math
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.functional.boxes import generalized_iou
from fastconv.models.checks import check_images
from fastconv.models.detection.common import Detections, Detector, Lesson, Part, full, survivors
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

STRIDE = 8  # pixels between the cells of the map
_CLASSES = 6  # the package's own shapes
_WIDTHS = (16, 32, 64)
_BLOCKS = 3  # residual blocks at the stride of the head
_NEAR = 1.5  # strides from a box's center within which cells learn it
_BOX_WEIGHT = 2.0
_PRIOR = 0.01  # probability of any class at the start, so that empty cells do not drown the rest


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            layers.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            layers.BatchNorm2d(out_channels),
            nn.SiLU(inplace=True),
        )


class Residual(nn.Module):
    """Two convolutions beside a shortcut, [N, C, H, W] -> the same shape."""

    def __init__(self, layers: ModuleType, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBlock(layers, channels, channels), ConvBlock(layers, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class YoloSmall(Detector):
    """A one-stage detector, [N, 3, H, W] with H, W multiples of 8 -> [N, 4 + num_classes, H/8, W/8].

    After Redmon et al.: You Only Look Once, 2015 (one pass, one cell an object), with the parts of its later
    relatives: distances to four sides instead of anchors and a label that is the overlap of the predicted box (Ge et
    al.: YOLOX, 2021; Zhang et al.: VarifocalNet, 2020). A cell's first four values are distances in strides, its others
    the logits of the classes. `loss` trains it, `detect` reads its maps. Made for 96x96 pictures of shapes: 338,842
    parameters, 59.48 M multiply-adds there with 6 classes; receptive field of a cell 143.
    """

    def __init__(self, layers: ModuleType, *, num_classes: int = _CLASSES) -> None:
        super().__init__()
        first, second, third = _WIDTHS
        self.num_classes = num_classes
        self.backbone = nn.Sequential(
            ConvBlock(layers, 3, first, stride=2),
            ConvBlock(layers, first, second, stride=2),
            Residual(layers, second),
            ConvBlock(layers, second, third, stride=2),
            *(Residual(layers, third) for _ in range(_BLOCKS)),
        )
        self.boxes = nn.Sequential(ConvBlock(layers, third, third), layers.Conv2d(third, 4, 1))
        self.classes = nn.Sequential(ConvBlock(layers, third, third), layers.Conv2d(third, num_classes, 1))
        nn.init.constant_(self.classes[-1].bias, math.log(_PRIOR / (1 - _PRIOR)))

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=STRIDE, multiple=STRIDE)
        x = self.backbone(x)
        return torch.cat([F.softplus(self.boxes(x)), self.classes(x)], dim=1)

    def lesson(self, output: Tensor, targets: Tensor) -> Lesson:
        boxes, logits = self.read(full(output))
        owner = assign(centers(output), targets)
        found = owner >= 0
        wanted = targets[found.nonzero()[:, 0], owner[found]]
        overlap = generalized_iou(boxes[found], wanted[:, 1:])
        goal = torch.zeros_like(logits)
        goal[found, wanted[:, 0].long()] = overlap.detach().clamp(min=0)
        # An empty cell counts by how sure it is of something (focal), a cell of an object by its overlap.
        weight = torch.where(goal > 0, goal, 0.75 * logits.detach().sigmoid().square())
        scores = F.binary_cross_entropy_with_logits(logits, goal, weight, reduction="sum")
        count = len(overlap)
        parts = {"classes": Part(scores, count), "boxes": Part(_BOX_WEIGHT * (1 - overlap).sum(), count)}
        return Lesson(parts, Part(overlap.detach().sum(), count))

    def read(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The cells' boxes [N, cells, 4] in pixels and their logits [N, cells, classes]."""
        cells = output.flatten(2).transpose(1, 2)
        distances, logits = cells[..., :4] * STRIDE, cells[..., 4:]
        at = centers(output)
        return torch.cat([at - distances[..., :2], at + distances[..., 2:]], dim=-1), logits

    @torch.no_grad()
    def detect(self, output: Tensor, *, score: float = 0.05, overlap: float = 0.6) -> list[Detections]:
        boxes, logits = self.read(full(output))
        size = output.shape[2] * STRIDE, output.shape[3] * STRIDE
        found = []
        for places, scores in zip(boxes, logits.sigmoid(), strict=True):
            cell, label = (scores > score).nonzero(as_tuple=True)
            found.append(survivors(places[cell], scores[cell, label], label, size, overlap))
        return found


def centers(output: Tensor) -> Tensor:
    """[cells, 2]: x and y in pixels of the cells' centers, row by row."""
    rows, columns = ((torch.arange(side, device=output.device) + 0.5) * STRIDE for side in output.shape[2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2)


def assign(at: Tensor, targets: Tensor) -> Tensor:
    """[N, cells]: the number of the object a cell learns, or -1; of several the smallest.

    A cell learns an object when its center lies in the box and within 1.5 strides of the box's center.
    """
    if not targets.shape[1]:
        return torch.full((len(targets), len(at)), -1, device=at.device)
    boxes = targets[..., 1:]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    x, y = at.unbind(-1)
    left, top, right, bottom = (side[..., None] for side in boxes.unbind(-1))  # [N, n, 1]
    within = (x > left) & (x < right) & (y > top) & (y < bottom)
    near = (at - middle[:, :, None]).abs().amax(-1) < _NEAR * STRIDE
    learned = within & near & (targets[..., :1] >= 0)
    area = ((right - left) * (bottom - top)).expand(learned.shape)
    smallest, owner = torch.where(learned, area, float("inf")).min(dim=1)
    return torch.where(smallest.isfinite(), owner, -1)


register(ModelInfo("yolo_small", YoloSmall, 96, IMAGENET, 338_842, 59_480_064, classes=_CLASSES, boxes=True))
