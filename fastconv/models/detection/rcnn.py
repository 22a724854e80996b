"""R-CNN: regions found beforehand, each cut out, warped to one size, and put through a network of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models.alexnet import AlexNet2012
from fastconv.models.checks import check_images
from fastconv.models.detection.common import Part
from fastconv.models.detection.fast_rcnn import SMALL_VGG
from fastconv.models.detection.matching import Sampling, by_image
from fastconv.models.detection.regions import RegionDetector
from fastconv.models.detection.search import searched
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register
from fastconv.models.tracing import whole
from fastconv.models.vgg import stages

_REGIONS = 2000  # an image
_CONTEXT = 16 / 227  # of the warped side, around a region (appendix A)
_VOC, _SHAPES = 20, 6  # classes
_LEAST = 8  # pixels a side of an image


class Trunk(NamedTuple):
    """What describes a warped region: `features` to the last pool, `hidden` from there, and their sizes."""

    features: nn.Module
    hidden: nn.Module
    pooled: int
    width: int


def _alexnet(layers: ModuleType) -> Trunk:
    network = AlexNet2012(layers)
    return Trunk(network.features, network.classifier[:-1], 256 * 6 * 6, 4096)


def _small(layers: ModuleType) -> Trunk:
    features = nn.Sequential(*(module for stage in stages(layers, SMALL_VGG)[:4] for module in stage))
    return Trunk(features, nn.Sequential(nn.Linear(64 * 2 * 2, 128), nn.ReLU(inplace=True)), 64 * 2 * 2, 128)


class RCNN(RegionDetector):
    """R-CNN, [N, 3, H, W] -> `Scored` regions; made for 500x500 images, takes any size of at least 8.

    Girshick, Donahue, Darrell, Malik: Rich feature hierarchies for accurate object detection, 2014, sections 2 and 3,
    appendices A and C: some 2,000 regions (`selective_search`, so scikit-image is needed to run it) with 16 pixels of
    context warped to 227x227, AlexNet's features, and a box for each class from those of its last pool. Unlike there,
    classes have the softmax the network is tuned with (appendix B) where the paper trains support vector machines on
    stored features afterwards, and boxes are learned with it, not by ridge regression. Parameters / multiply-adds with
    20 classes and 2,000 regions: 57.7 M / 1.44 T. `rcnn_small` is ours, for 96x96 pictures of shapes
    and 32x32 regions: 0.102 M / 0.343 G with 100 of them.
    Receptive field of the last pool 195 of a region's 227 pixels.
    """

    def __init__(
        self,
        layers: ModuleType,
        trunk: Callable[[ModuleType], Trunk],
        side: int,
        classes: int,
        most: int,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.side, self.most = classes if num_classes is None else num_classes, side, most
        self.sampling = Sampling(128, 0.25) if most == _REGIONS else Sampling(32, 0.25)
        parts = trunk(layers)
        self.features, self.hidden = parts.features, parts.hidden
        self.cls_score = nn.Linear(parts.width, 1 + self.num_classes)
        self.bbox_pred = nn.Linear(parts.pooled, 4 * (1 + self.num_classes))
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def check(self, images: Tensor) -> None:
        check_images(self, images, smallest=_LEAST)

    def describe(self, images: Tensor) -> list[Tensor]:
        return []

    def regions(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        return searched(images, self.most)

    def taught(self, images: Tensor, maps: list[Tensor], objects: list[Tensor]) -> tuple[list[Tensor], dict[str, Part]]:
        return by_image(searched(images, self.most), len(images)), {}

    def score(self, images: Tensor, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        pool = self.features(warped(images, regions, self.side)).flatten(1)
        codes = self.bbox_pred(pool).view(-1, 1 + self.num_classes, 4)
        return self.cls_score(self.hidden(pool)), codes


@whole
def warped(images: Tensor, regions: Tensor, side: int) -> Tensor:
    """[R, 3, side, side]: every region with its context, stretched; nothing (the mean colour) outside the image."""
    if regions.is_meta:
        return images.new_empty(len(regions), images.shape[1], side, side)
    x = _places(regions[:, 1::2] / images.shape[3], side)
    y = _places(regions[:, 2::2] / images.shape[2], side)
    grids = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3).to(images)
    found = images.new_zeros(regions.shape[0], images.shape[1], side, side)
    for number, image in enumerate(images):
        own = (regions[:, 0] == number).nonzero()[:, 0]
        read = F.grid_sample(image.expand(own.shape[0], -1, -1, -1), grids[own], align_corners=False)
        found.index_copy_(0, own, read)
    return found


def _places(edges: Tensor, side: int) -> Tensor:
    """[R, side]: where the pixels of an axis lie, -1 to 1, for regions between `edges` [R, 2], 0 to 1, of the image."""
    low, high = (edges * 2 - 1).unbind(1)
    center, half = (low + high) / 2, (high - low) / 2 / (1 - 2 * _CONTEXT)
    at = (2 * torch.arange(side, device=edges.device) + 1) / side - 1
    return center[:, None] + half[:, None] * at


for _name, _trunk, _side, _size, _classes, _most, _parameters, _products in (
    ("rcnn_alexnet", _alexnet, 227, 500, _VOC, _REGIONS, 57_728_489, 1_442_341_952_000),
    ("rcnn_small", _small, 32, 96, _SHAPES, 100, 101_859, 343_232_000),
):
    build = partial(RCNN, trunk=_trunk, side=_side, classes=_classes, most=_most)
    register(ModelInfo(_name, build, _size, IMAGENET, _parameters, _products, classes=_classes, boxes=True))
