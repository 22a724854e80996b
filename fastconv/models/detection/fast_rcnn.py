"""Fast R-CNN: regions found beforehand, read from one pass of a network over the image."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from torch import Tensor

from fastconv.models.checks import check_images
from fastconv.models.detection.common import Part
from fastconv.models.detection.faster_rcnn import VGGDetector, VGGMaps
from fastconv.models.detection.matching import Sampling, by_image
from fastconv.models.detection.regions import RegionDetector, pooled, region_head
from fastconv.models.detection.search import searched
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register
from fastconv.models.vgg import VARIANTS as VGG_VARIANTS
from fastconv.models.vgg import Variant as VGGVariant

_STRIDE = 16  # of VGG's last map but one pool
_REGIONS = 2000  # an image
_VOC, _SHAPES = 20, 6  # classes


class FastRCNN(RegionDetector):
    """Fast R-CNN, [N, 3, H, W] with H, W >= 16 -> `Scored` regions; made for 600x1000 images.

    Girshick: Fast R-CNN, 2015, section 2: VGG-16's convolutions, RoI pooling to 7x7, its two hidden layers, a softmax
    over classes and ground, a box for each class. Regions are those of `selective_search`, so scikit-image is needed
    to run it. Parameters / multiply-adds at 600x600 with 20 classes and 2,000 regions: 134.7 M / 349.8 G, most of them
    in the hidden layers. `fast_rcnn_small` is ours, for 96x96 pictures of shapes: 0.520 M / 74.1 M.
    Receptive field of the maps 196.
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: VGGDetector,
        *,
        num_classes: int | None = None,
        dropout: float = 0.5,
        most: int = _REGIONS,
    ) -> None:
        super().__init__()
        self.num_classes, self.most = variant.classes if num_classes is None else num_classes, most
        # Section 2.3: 64 regions of an image, a quarter objects, ground from an overlap of 0.1 on.
        self.sampling = Sampling(64, 0.25, least=0.1)
        self.backbone = VGGMaps(layers, variant.vgg)
        self.roi_heads = region_head(variant.vgg.widths[-1], variant.hidden, self.num_classes, dropout)

    def check(self, images: Tensor) -> None:
        check_images(self, images, smallest=_STRIDE)

    def describe(self, images: Tensor) -> list[Tensor]:
        return [self.backbone(images)]

    def regions(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        return searched(images, self.most)

    def taught(self, images: Tensor, maps: list[Tensor], objects: list[Tensor]) -> tuple[list[Tensor], dict[str, Part]]:
        return by_image(searched(images, self.most), len(images)), {}

    def score(self, images: Tensor, maps: list[Tensor], regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.roi_heads["box_predictor"](self.roi_heads["box_head"](pooled(maps[0], regions, _STRIDE)))


_VGG16 = VGGDetector(VGG_VARIANTS["vgg16"], 4096, 600, _VOC, 134_690_729, 349_779_996_672)
SMALL_VGG = VGGVariant((1, 1, 1, 1, 1), True, 0, 0, widths=(16, 32, 64, 64, 64))  # its counts are not asked
_SMALL = VGGDetector(SMALL_VGG, 128, 96, _SHAPES, 520_483, 74_077_696)

for _name, _variant, _options in (
    ("fast_rcnn_vgg16", _VGG16, {}),
    ("fast_rcnn_small", _SMALL, {"most": 100, "dropout": 0.0}),
):
    register(
        ModelInfo(
            name=_name,
            build=partial(FastRCNN, variant=_variant, **_options),
            image_size=_variant.size,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
            classes=_variant.classes,
            boxes=True,
        )
    )
