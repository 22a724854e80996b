"""A small network of every detector, and pictures with objects for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fastconv.models.detection import Detector
from fastconv.models.detection.fast_rcnn import SMALL_VGG, FastRCNN
from fastconv.models.detection.faster_rcnn import FasterRCNN, FasterRCNNVGG, Pyramid, VGGDetector
from fastconv.models.detection.matching import Sampling
from fastconv.models.detection.rcnn import RCNN, Trunk
from fastconv.models.detection.rpn import Plan
from fastconv.models.detection.yolo_small import YoloSmall
from fastconv.models.detection.yolo_v1 import Variant, YoloV1
from fastconv.models.registry import layer_module
from fastconv.models.resnet import BasicBlock
from fastconv.models.resnet import Variant as Residual

CLASSES = 3
_SIZES = (64, 80)
_UNCOUNTED = (0, 0)
_VGG = VGGDetector(SMALL_VGG, 16, 64, CLASSES, *_UNCOUNTED)
_PLAN = Plan(sizes=((16,), (24,), (32,), (48,), (64,)), before=(60, 40), after=(30, 20), sampling=Sampling(32, 0.5))
_PYRAMID = Pyramid(
    Residual(BasicBlock, (1, 1, 1, 1), *_UNCOUNTED), 8, 16, _PLAN, Sampling(32, 0.25), 64, CLASSES, *_UNCOUNTED
)
_LAYOUT = (*(part for width in (4, 8, 8, 8) for part in ((width, 3), "pool")), (8, 1))


def _trunk(layers) -> Trunk:
    features = nn.Sequential(layers.Conv2d(3, 4, 3, stride=2), nn.ReLU(), layers.AdaptiveAvgPool2d(2))
    return Trunk(features, nn.Sequential(nn.Linear(16, 8), nn.ReLU()), 16, 8)


@dataclass(frozen=True)
class Thin:
    """How to build one, the sides of images it takes, and its parts that have a fixed graph with what they take."""

    build: Callable[..., Detector]
    sizes: tuple[int, ...] = _SIZES
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    fixed: bool = False  # linear layers fix the side: one network for each

    def model(self, layers: str = "fastconv", seed: int = 0, size: int | None = None) -> Detector:
        torch.manual_seed(seed)
        sides = {"image_size": size or self.sizes[0]} if self.fixed else {}
        return self.build(layer_module(layers), num_classes=CLASSES, **sides)

    def images(self, size: int | None = None) -> Tensor:
        side = size or self.sizes[0]
        return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


THIN = {
    "yolo_small": Thin(YoloSmall),
    "yolo_v1": Thin(
        partial(YoloV1, variant=Variant(_LAYOUT, (4, 16), 112, CLASSES, *_UNCOUNTED)), (112, 80), fixed=True
    ),
    "yolo_v1_norm": Thin(
        partial(YoloV1, variant=Variant(_LAYOUT, (16,), 112, CLASSES, *_UNCOUNTED, True)), (112, 88), fixed=True
    ),
    "rcnn": Thin(
        partial(RCNN, trunk=_trunk, side=16, classes=CLASSES, most=20),
        parts=(("features", (5, 3, 16, 16)), ("hidden", (5, 16)), ("cls_score", (5, 8)), ("bbox_pred", (5, 16))),
    ),
    "fast_rcnn": Thin(
        partial(FastRCNN, variant=_VGG, most=20, dropout=0.0),
        parts=(
            ("backbone", (2, 3, 64, 64)),
            ("roi_heads.box_head", (5, 64, 7, 7)),
            ("roi_heads.box_predictor", (5, 16)),
        ),
    ),
    "faster_rcnn": Thin(
        partial(FasterRCNN, variant=_PYRAMID),
        parts=(
            ("backbone", (2, 3, 64, 64)),
            ("rpn.head", (2, 8, 16, 16)),
            ("roi_heads.box_head", (5, 8, 7, 7)),
            ("roi_heads.box_predictor", (5, 16)),
        ),
    ),
    "faster_rcnn_vgg": Thin(
        partial(FasterRCNNVGG, variant=_VGG, dropout=0.0),
        parts=(
            ("backbone", (2, 3, 64, 64)),
            ("rpn.head", (2, 64, 4, 4)),
            ("roi_heads.box_head", (5, 64, 7, 7)),
            ("roi_heads.box_predictor", (5, 16)),
        ),
    ),
}

# Two objects in the first image, one in the second.
TARGETS = torch.tensor([[[1.0, 4, 6, 40, 38], [2, 36, 30, 60, 62]], [[0.0, 10, 10, 50, 54], [-1.0] * 5]])
