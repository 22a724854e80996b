"""Faster R-CNN: a network that proposes regions and one that names them, on the same maps.

The network of the paper on VGG-16; torchvision's on ResNet-50 and a pyramid, with its state-dict keys; a small one.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.detection.common import Part
from fastconv.models.detection.fpn import ResNetFPN
from fastconv.models.detection.matching import Sampling
from fastconv.models.detection.regions import RegionDetector, aligned, padded, pooled, region_head
from fastconv.models.detection.rpn import RPN, SMOOTH, Plan, propose
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register
from fastconv.models.resnet import BasicBlock, Bottleneck
from fastconv.models.resnet import Variant as ResNetVariant
from fastconv.models.vgg import VARIANTS as VGG_VARIANTS
from fastconv.models.vgg import Variant as VGGVariant
from fastconv.models.vgg import stages

_VOC, _COCO, _SHAPES = 20, 90, 6  # classes; COCO's numbers reach 90, though ten of them name nothing
_VGG_STRIDE = 16
_STRIDES = (4, 8, 16, 32)  # of the maps of a pyramid that regions are read from
_UNCOUNTED = (0, 0)  # the backbone's own figures, which belong to its classifier

# He et al. 2015, table 1; its counts are those of the classifier.
_RESNET50 = ResNetVariant(Bottleneck, (3, 4, 6, 3), *_UNCOUNTED)


class Pyramid(NamedTuple):
    """A Faster R-CNN on a ResNet and its pyramid."""

    resnet: ResNetVariant
    channels: int
    hidden: int
    plan: Plan
    sampling: Sampling
    size: int
    classes: int
    parameters: int
    multiply_adds: int


class FasterRCNN(RegionDetector):
    """Faster R-CNN on a pyramid, [N, 3, H, W] -> `Scored` regions; made for 800x800 images, takes any size.

    Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks, 2015, with
    Lin et al.'s pyramid (2016, section 4) and RoI align (He et al. 2017): torchvision's `fasterrcnn_resnet50_fpn`,
    whose state dict, outputs and losses are these. A class is torchvision's label less one, which is the ground.
    Its published COCO weights belong to batch norms without an epsilon (`norm_eps=0.0`), which `load_detector` knows.
    Parameters / multiply-adds at 800x800 with 90 classes and 1,000 regions: 41.81 M / 134.4 G.
    `faster_rcnn_small` is ours, for 96x96 pictures of shapes: 5.58 M / 0.238 G. The field of a region's
    features is unbounded.
    """

    smooth = SMOOTH

    def __init__(
        self, layers: ModuleType, variant: Pyramid, *, num_classes: int | None = None, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_classes = variant.classes if num_classes is None else num_classes
        self.sampling = variant.sampling
        self.backbone = ResNetFPN(layers, variant.resnet, variant.channels)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = norm_eps
        self.rpn = RPN(layers, variant.channels, variant.plan)
        self.roi_heads = region_head(variant.channels, variant.hidden, self.num_classes)

    def check(self, images: Tensor) -> None:
        check_images(self, images)

    def describe(self, images: Tensor) -> list[Tensor]:
        return self.backbone(padded(images, _STRIDES[-1]))

    def regions(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        return propose(self.rpn.plan, self.rpn(maps), images, _STRIDES[-1])

    def taught(self, images: Tensor, maps: list[Tensor], objects: list[Tensor]) -> tuple[list[Tensor], dict[str, Part]]:
        return self.rpn.taught(maps, objects, images, _STRIDES[-1])

    def score(self, images: Tensor, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        bins = aligned(maps[:-1], regions, _STRIDES)
        return self.roi_heads["box_predictor"](self.roi_heads["box_head"](bins))


class VGGDetector(NamedTuple):
    """A detector on VGG's convolutions."""

    vgg: VGGVariant
    hidden: int
    size: int
    classes: int
    parameters: int
    multiply_adds: int


class VGGMaps(nn.Sequential):
    """VGG's convolutions without the last pool: [N, 3, H, W] -> [N, 512, H/16, W/16]."""

    def __init__(self, layers: ModuleType, variant: VGGVariant) -> None:
        super().__init__(*[module for stage in stages(layers, variant) for module in stage][:-1])


class FasterRCNNVGG(RegionDetector):
    """Faster R-CNN as published, [N, 3, H, W] with H, W >= 16 -> `Scored` regions; made for 600x1000 images.

    Ren, He, Girshick, Sun: Faster R-CNN, 2015, sections 3.1 to 3.3: VGG-16's convolutions, nine anchors a place (areas
    of 128, 256 and 512 pixels squared, ratios 1:2, 1:1, 2:1), two classes for each, 300 regions at inference, RoI
    pooling to 7x7, VGG's two hidden layers. All is learned at once, the paper's approximate joint training, with both
    terms of the proposals' loss divided by the anchors drawn. Parameters / multiply-adds at 600x600 with 20 classes
    and 300 regions: 137.1 M / 149.1 G. Receptive field of the maps 196; proposals see 228.
    """

    def __init__(
        self, layers: ModuleType, variant: VGGDetector, *, num_classes: int | None = None, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.num_classes = variant.classes if num_classes is None else num_classes
        self.sampling = Sampling(128, 0.25)
        channels = variant.vgg.widths[-1]
        self.backbone = VGGMaps(layers, variant.vgg)
        self.rpn = RPN(layers, channels, _PAPER, outputs=2)
        self.roi_heads = region_head(channels, variant.hidden, self.num_classes, dropout)

    def check(self, images: Tensor) -> None:
        check_images(self, images, smallest=_VGG_STRIDE)

    def describe(self, images: Tensor) -> list[Tensor]:
        return [self.backbone(images)]

    def regions(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        return propose(self.rpn.plan, self.rpn(maps), images, 1)

    def taught(self, images: Tensor, maps: list[Tensor], objects: list[Tensor]) -> tuple[list[Tensor], dict[str, Part]]:
        return self.rpn.taught(maps, objects, images, 1)

    def score(self, images: Tensor, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.roi_heads["box_predictor"](self.roi_heads["box_head"](pooled(maps[0], regions, _VGG_STRIDE)))


_TORCHVISION = Plan(sizes=((32,), (64,), (128,), (256,), (512,)))
_PAPER = Plan(sizes=((128, 256, 512),), before=(12000, 6000), after=(2000, 300), inside=True)
_TINY = Plan(
    sizes=((16,), (24,), (32,), (48,), (64,)),
    before=(60, 40),
    after=(60, 30),
    sampling=Sampling(64, 0.5, object=0.6, nothing=0.3, force=True),
)

_PYRAMIDS = {
    "fasterrcnn_resnet50_fpn": Pyramid(
        _RESNET50, 256, 1024, _TORCHVISION, Sampling(512, 0.25), 800, _COCO, 41_808_406, 134_379_721_216
    ),
    "faster_rcnn_small": Pyramid(
        ResNetVariant(BasicBlock, (1, 1, 1, 1), *_UNCOUNTED),
        64,
        128,
        _TINY,
        Sampling(64, 0.25),
        96,
        _SHAPES,
        5_575_666,
        237_613_248,
    ),
}
for _name, _pyramid in _PYRAMIDS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(FasterRCNN, variant=_pyramid),
            image_size=_pyramid.size,
            normalization=IMAGENET,
            parameters=_pyramid.parameters,
            multiply_adds=_pyramid.multiply_adds,
            classes=_pyramid.classes,
            boxes=True,
        )
    )

VGG16 = VGGDetector(VGG_VARIANTS["vgg16"], 4096, 600, _VOC, 137_078_239, 149_102_558_208)
register(
    ModelInfo(
        name="faster_rcnn_vgg16",
        build=partial(FasterRCNNVGG, variant=VGG16),
        image_size=VGG16.size,
        normalization=IMAGENET,
        parameters=VGG16.parameters,
        multiply_adds=VGG16.multiply_adds,
        classes=VGG16.classes,
        boxes=True,
    )
)
