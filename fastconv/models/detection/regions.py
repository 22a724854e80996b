"""Detectors that look at regions: what R-CNN, Fast and Faster R-CNN share once there are regions and their features."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastconv.functional.boxes import box_area, decode_boxes, roi_align, roi_pool
from fastconv.models.detection.common import Detections, Detector, Lesson, Part, full, objects_of, survivors
from fastconv.models.detection.matching import Sample, Sampling, choose
from fastconv.models.tracing import whole

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of codes: one over the deviations of Fast R-CNN's targets
_LEAST_SIDE = 1e-2  # pixels; smaller detections are none
_POOLED = 7  # bins a side
_SAMPLES = 2  # a bin and axis
# Lin et al. 2016, equation 1: a region of 224 x 224 pixels is read from level 4, whose stride is 16.
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4


class Scored(NamedTuple):
    """What inference gives: logits [R, 1 + classes] and codes [R, 1 + classes, 4] of regions [R, 5] of the images."""

    logits: Tensor
    codes: Tensor
    regions: Tensor
    images: Tensor


pytree._register_namedtuple(Scored, serialized_type_name="fastconv.Scored")  # for torch.export.save


class Learned(NamedTuple):
    """What a training step gives: logits and codes of a sample of regions, and what the proposals' loss is made of."""

    logits: Tensor
    codes: Tensor
    sample: Sample
    proposals: dict[str, Part]


class Predictor(nn.Module):
    """Class and box from a region's features: [R, C] -> logits [R, 1 + classes], codes [R, 1 + classes, 4]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, 1 + num_classes)
        self.bbox_pred = nn.Linear(channels, 4 * (1 + num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x).view(-1, self.cls_score.out_features, 4)


class RegionDetector(Detector):
    """A detector whose answers are about regions. A subclass finds them (`regions`, `taught`) and scores them.

    How many regions there are depends on what the pictures show. torch.export follows the whole, for one number of
    images; torch.compile breaks the graph where regions are found.
    """

    searches = True
    sampling: Sampling
    num_classes: int
    smooth = 1.0  # where the loss of codes turns from square to straight

    def describe(self, images: Tensor) -> list[Tensor]:
        """The maps from which regions are found and read."""
        raise NotImplementedError

    def regions(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Regions [R, 5] to detect in."""
        raise NotImplementedError

    def taught(self, images: Tensor, maps: list[Tensor], objects: list[Tensor]) -> tuple[list[Tensor], dict[str, Part]]:
        """Regions [n, 4] of every image to learn from, and the loss of finding them, where that is learned."""
        raise NotImplementedError

    def score(self, images: Tensor, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [R, 1 + classes] (the ground first) and codes [R, 1 + classes, 4] of regions."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Scored:
        self.check(images)
        maps = self.describe(images)
        return self._scored(images, maps, self.regions(images, maps))

    def look_at(self, images: Tensor, regions: Tensor) -> Scored:
        """What `forward` gives, for regions [R, 5] (image, box in pixels) that were found beforehand."""
        self.check(images)
        if regions.dim() != 2 or regions.shape[1] != 1 + 4:
            raise ValueError(f"The argument regions must be [R, 5], but has shape {list(regions.shape)}.")
        return self._scored(images, self.describe(images), regions)

    def _scored(self, images: Tensor, maps: list[Tensor], regions: Tensor) -> Scored:
        return Scored(*self.score(images, maps, regions), regions, images)

    def check(self, images: Tensor) -> None:
        """Raise RuntimeError for images the network cannot take."""
        raise NotImplementedError

    def learn(self, images: Tensor, targets: Tensor) -> Learned:
        self.check(images)
        objects = objects_of(targets)
        maps = self.describe(images)
        proposals, parts = self.taught(images, maps, objects)
        sample = choose(proposals, objects, self.sampling, WEIGHTS)
        return Learned(*self.score(images, maps, sample.regions), sample, parts)

    def lesson(self, output: Learned, targets: Tensor) -> Lesson:
        """Girshick 2015, equation 1: cross entropy of the class, and for objects the smooth distance of the codes."""
        logits, codes, sample = full(output.logits), full(output.codes), output.sample
        objects = (sample.labels > 0).nonzero()[:, 0]
        own, goals = codes[objects, sample.labels[objects]], sample.goals[objects]
        count = len(sample.labels)
        parts = {
            "loss_classifier": Part(F.cross_entropy(logits, sample.labels, reduction="sum"), count),
            "loss_box_reg": Part(F.smooth_l1_loss(own, goals, beta=self.smooth, reduction="sum"), count),
        }
        found, wanted = (decode_boxes(x.detach(), sample.regions[objects, 1:], WEIGHTS) for x in (own, goals))
        sides = torch.minimum(found[:, 2:], wanted[:, 2:]) - torch.maximum(found[:, :2], wanted[:, :2])
        common = sides.clamp(min=0).prod(1)
        overlap = common / (box_area(found) + box_area(wanted) - common)
        return Lesson(parts | output.proposals, Part(overlap.sum(), len(objects)))

    @torch.no_grad()
    def detect(self, output: Scored, *, score: float = 0.05, overlap: float = 0.5) -> list[Detections]:
        size = tuple(output.images.shape[2:])
        images = output.regions[:, 0]
        probabilities = full(output.logits).softmax(1)[:, 1:]
        boxes = decode_boxes(full(output.codes)[:, 1:], output.regions[:, None, 1:], WEIGHTS)
        found = []
        for number in range(len(output.images)):
            sure = torch.where((images == number)[:, None], probabilities, 0)
            region, label = (sure > score).nonzero(as_tuple=True)
            places = boxes[region, label]
            large = ((places[:, 2:] - places[:, :2]) >= _LEAST_SIDE).all(1)
            region, label, places = region[large], label[large], places[large]
            found.append(survivors(places, probabilities[region, label], label, size, overlap))
        return found


@whole
def aligned(maps: list[Tensor], regions: Tensor, strides: tuple[int, ...]) -> Tensor:
    """[R, C, 7, 7]: every region from the level of a pyramid that its size asks for, by RoI align."""
    if regions.is_meta:
        return maps[0].new_empty(len(regions), maps[0].shape[1], _POOLED, _POOLED)
    lowest, highest = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    side = box_area(regions[:, 1:]).sqrt()
    level = (_CANONICAL_LEVEL + (side / _CANONICAL_SIDE).log2() + 1e-6).floor().clamp(lowest, highest) - lowest
    pooled = maps[0].new_zeros(regions.shape[0], maps[0].shape[1], _POOLED, _POOLED)
    for number, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        own = (level == number).nonzero()[:, 0]
        read = roi_align(features, regions[own], _POOLED, 1 / stride, _SAMPLES)
        pooled = pooled.index_copy(0, own, read.to(pooled.dtype))
    return pooled


@whole
def pooled(features: Tensor, regions: Tensor, stride: int) -> Tensor:
    """[R, C, 7, 7]: every region from one map, by RoI pooling."""
    return roi_pool(features, regions, _POOLED, 1 / stride)


@whole
def padded(images: Tensor, multiple: int) -> Tensor:
    """The images with nothing on the right and below, up to sides that are multiples."""
    height, width = images.shape[2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))


class MLPHead(nn.Module):
    """Two hidden layers on a region's bins: [R, C, 7, 7] -> [R, hidden]."""

    def __init__(self, channels: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * _POOLED**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        return self.dropout(F.relu(self.fc7(x)))


def region_head(channels: int, hidden: int, num_classes: int, dropout: float = 0.0) -> nn.ModuleDict:
    """What stands behind the pooled bins, by torchvision's names."""
    return nn.ModuleDict(
        {"box_head": MLPHead(channels, hidden, dropout), "box_predictor": Predictor(hidden, num_classes)}
    )
