"""YOLOv1: a picture cut into cells, and every cell says what stands at its place, in one pass."""

from __future__ import annotations

from functools import partial
from itertools import count
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.functional.boxes import box_area
from fastconv.models.checks import check_image_size, check_images
from fastconv.models.detection.common import Detections, Detector, Lesson, Part, full, survivors
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

GRID = 7  # cells a side
BOXES = 2  # a cell predicts
_CLASSES = 20  # PASCAL VOC's
_SHAPES = 6  # classes of the package's own pictures
_BOX = 5  # x, y, the roots of width and height, confidence
_COORD, _NO_OBJECT = 5.0, 0.5  # the weights of equation 3
_SLOPE = 0.1  # of the leaky ReLU where it is negative

# A convolution is (filters, window) or (filters, window, stride); "pool" halves a map.
Layout = tuple[str | tuple[int, ...], ...]


class Variant(NamedTuple):
    """One network: its convolutions, the sizes of its hidden linear layers, and what it is made for."""

    layout: Layout
    hidden: tuple[int, ...]  # all but the last are linear, as in the authors' small network
    size: int
    classes: int
    parameters: int
    multiply_adds: int
    batch_norm: bool = False


class YoloV1(Detector):
    """YOLO, [N, 3, image_size, image_size] -> [N, 7, 7, 2 * 5 + num_classes]; 448 in the paper, 112 of the small one.

    Redmon, Divvala, Girshick, Farhadi: You Only Look Once: Unified, Real-Time Object Detection, 2015, section 2,
    figure 3. A cell's values are two boxes (x and y of the center within the cell, the roots of width and height as
    shares of the picture, confidence) and the probability of every class. Networks: 24 convolutions, and Fast YOLO's
    9, for which the authors' release has two more linear layers. Parameters / multiply-adds at 448x448 with 20
    classes: 271.7 M / 20.29 G, 45.1 M / 2.42 G; `yolo_v1_small` is ours, for 112x112 pictures of shapes, 2.26 M / 58 M
    with 6 classes. Receptive field of the last convolution 749, Fast YOLO's 574, ours 78; a cell's values, behind
    linear layers, see all.

    Section 2 sets the number of cells, S = 7 a side, and no stride: linear layers make them of a last map of any side.
    So with another `image_size` a cell is image_size / 7 pixels, in losses and detections alike, and only the first
    linear layer changes: it has as many inputs as the last map has values. ValueError where that map is empty: below
    31 pixels, 64 for Fast YOLO, 16 for the small one.
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int | None = None,
        dropout: float = 0.5,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = variant.classes if num_classes is None else num_classes
        smallest = next(size for size in count(1) if _side(variant.layout, size))
        self.image_size = check_image_size(self, variant.size if image_size is None else image_size, smallest)
        self.features = nn.Sequential(*_convolutions(layers, variant))
        filters = [step for step in variant.layout if step != "pool"][-1][0]
        inputs = filters * _side(variant.layout, self.image_size) ** 2
        modules: list[nn.Module] = [nn.Flatten()]
        for index, width in enumerate(variant.hidden, start=1):
            modules.append(nn.Linear(inputs, width))
            if index == len(variant.hidden):
                modules += [nn.LeakyReLU(_SLOPE), nn.Dropout(dropout)]
            inputs = width
        modules.append(nn.Linear(inputs, GRID**2 * (BOXES * _BOX + self.num_classes)))
        self.classifier = nn.Sequential(*modules)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, exactly=self.image_size)
        return self.classifier(self.features(x)).view(-1, GRID, GRID, BOXES * _BOX + self.num_classes)

    def lesson(self, output: Tensor, targets: Tensor) -> Lesson:
        """Equation 3: squared errors, summed over a picture; of a cell's boxes the nearest learns its object."""
        codes, classes = self.read(full(output))
        owned, wanted = self._cells(targets)
        overlap = _overlaps(self._boxes(codes.detach())[owned], wanted[:, None, 1:])  # [objects, boxes]
        best, chosen = overlap.max(dim=1)
        responsible = torch.zeros_like(codes[..., 4], dtype=torch.bool)
        responsible[owned] = F.one_hot(chosen, BOXES).bool()
        learned = codes[responsible]
        places = (learned[:, :4] - self._codes(wanted)).square().sum()
        sure = (learned[:, 4] - best).square().sum()
        unsure = codes[..., 4][~responsible].square().sum()
        named = (classes[owned] - F.one_hot(wanted[:, 0].long(), self.num_classes)).square().sum()
        images = len(output)
        parts = {
            "boxes": Part(_COORD * places, images),
            "objects": Part(sure, images),
            "no objects": Part(_NO_OBJECT * unsure, images),
            "classes": Part(named, images),
        }
        return Lesson(parts, Part(best.sum(), len(best)))

    @torch.no_grad()
    def detect(self, output: Tensor, *, score: float = 0.05, overlap: float = 0.5) -> list[Detections]:
        """Section 2.3: a box's score for a class is its confidence times the class's probability."""
        codes, classes = self.read(full(output))
        found = []
        for boxes, sure, named in zip(self._boxes(codes), codes[..., 4], classes, strict=True):
            scores = (sure[..., None] * named[:, :, None]).view(-1, self.num_classes)
            box, label = (scores > score).nonzero(as_tuple=True)
            places = boxes.view(-1, 4)[box]
            found.append(survivors(places, scores[box, label], label, (self.image_size, self.image_size), overlap))
        return found

    def read(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes as they are coded, [N, 7, 7, 2, 5], and classes [N, 7, 7, classes]."""
        boxes = output[..., : BOXES * _BOX]
        return boxes.view(*output.shape[:3], BOXES, _BOX), output[..., BOXES * _BOX :]

    def _cells(self, targets: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Image, row and column of the cells with an object's center, and the object; the last one of several."""
        wanted = targets.new_full((len(targets), GRID, GRID, _BOX), -1)
        cell = self.image_size / GRID
        for rows in targets.unbind(1):
            present = (rows[:, 0] >= 0).nonzero()[:, 0]
            x, y = (((rows[:, i] + rows[:, i + 2]) / 2 / cell).long().clamp(0, GRID - 1) for i in (1, 2))
            wanted[present, y[present], x[present]] = rows[present]
        owned = (wanted[..., 0] >= 0).nonzero(as_tuple=True)
        return owned, wanted[owned]

    def _codes(self, wanted: Tensor) -> Tensor:
        """[n, 4] of the objects [n, 5]: the center within its cell, and the roots of the sides' shares."""
        corners = wanted[:, 1:] / self.image_size
        center = (corners[:, :2] + corners[:, 2:]) / 2 * GRID
        within = center - center.floor().clamp(0, GRID - 1)
        return torch.cat([within, (corners[:, 2:] - corners[:, :2]).sqrt()], dim=1)

    def _boxes(self, codes: Tensor) -> Tensor:
        """[N, 7, 7, 2, 4] in pixels."""
        at = torch.arange(GRID, device=codes.device)
        cell = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1)[:, :, None]
        center = (codes[..., :2] + cell) * (self.image_size / GRID)
        half = codes[..., 2:4].square() * (self.image_size / 2)
        return torch.cat([center - half, center + half], dim=-1)


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, box by box."""
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    common = sides.clamp(min=0).prod(-1)
    return common / (box_area(boxes) + box_area(others) - common)


def _side(layout: Layout, size: int) -> int:
    """The side of the last map of an image of `size` pixels a side: a pool rounds down, a stride up."""
    for step in layout:
        size = size // 2 if step == "pool" else -(-size // (*step, 1)[2])
    return size


def _convolutions(layers: ModuleType, variant: Variant) -> list[nn.Module]:
    modules: list[nn.Module] = []
    channels = 3
    for step in variant.layout:
        if step == "pool":
            modules.append(layers.MaxPool2d(2, stride=2))
            continue
        filters, window, stride = (*step, 1)[:3]
        modules.append(
            layers.Conv2d(channels, filters, window, stride, padding=window // 2, bias=not variant.batch_norm)
        )
        if variant.batch_norm:
            modules.append(layers.BatchNorm2d(filters))
        modules.append(nn.LeakyReLU(_SLOPE, inplace=True))
        channels = filters
    return modules


_FULL: Layout = (
    *((64, 7, 2), "pool", (192, 3), "pool"),
    *((128, 1), (256, 3), (256, 1), (512, 3), "pool"),
    *((256, 1), (512, 3)) * 4,
    *((512, 1), (1024, 3), "pool"),
    *((512, 1), (1024, 3)) * 2,
    *((1024, 3), (1024, 3, 2), (1024, 3), (1024, 3)),
)
_FAST: Layout = (
    *(part for width in (16, 32, 64, 128, 256, 512) for part in ((width, 3), "pool")),
    *((1024, 3),) * 3,
)
_SMALL: Layout = (
    *(part for width in (16, 32, 64) for part in ((width, 3), "pool")),
    *((128, 3), "pool", (128, 3), (64, 1)),
)

VARIANTS = {
    "yolo_v1": Variant(_FULL, (4096,), 448, _CLASSES, 271_703_550, 20_285_153_280),
    "yolo_v1_fast": Variant(_FAST, (256, 4096), 448, _CLASSES, 45_089_374, 2_418_728_960),
    "yolo_v1_small": Variant(_SMALL, (512,), 112, _SHAPES, 2_262_048, 58_404_864, batch_norm=True),
}

for _name, _variant in VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(YoloV1, variant=_variant),
            image_size=_variant.size,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
            classes=_variant.classes,
            boxes=True,
        )
    )
