"""VGG: plain stacks of 3x3 convolutions, with and without batch norm. State-dict keys are torchvision's."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register

_STAGE_WIDTHS = (64, 128, 256, 512, 512)
_FINAL_SIZE = 7  # the classifier sees a 7x7 map: 224 halved by five max pools
_HIDDEN = 4096
_SMALLEST = 32  # five halvings leave one pixel


class Variant(NamedTuple):
    """One column of the paper's table 1."""

    depths: tuple[int, int, int, int, int]  # convolutions per stage
    batch_norm: bool
    parameters: int
    multiply_adds: int
    widths: tuple[int, int, int, int, int] = _STAGE_WIDTHS


class VGG(nn.Module):
    """VGG, [N, 3, H, W] with H, W >= 32 -> logits [N, num_classes]; made for 224x224 images.

    Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014, section 2,
    table 1 columns A, B, D, E; batch norm came after the paper.
    Parameters / multiply-adds at 224x224: VGG-11 132.9 M / 7.61 G, -13 133.0 M / 11.31 G,
    -16 138.4 M / 15.47 G, -19 143.7 M / 19.63 G; batch norm adds 5,504 to 11,008 parameters.
    Receptive field of the last pool 150, 156, 212, 268.
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int = 1000,
        dropout: float = 0.5,
        hidden: int = _HIDDEN,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(*(module for stage in stages(layers, variant) for module in stage))
        self.avgpool = layers.AdaptiveAvgPool2d(_FINAL_SIZE)
        self.classifier = nn.Sequential(
            nn.Linear(variant.widths[-1] * _FINAL_SIZE**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=_SMALLEST)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def stages(
    layers: ModuleType, variant: Variant, *, first_padding: int = 1, ceil_mode: bool = False
) -> list[list[nn.Module]]:
    """Five stages of 3x3 convolutions, each ending in a 2x2 max pool: [N, 3, H, W] -> [N, 512, H/32, W/32].

    `first_padding` is that of the first convolution; `ceil_mode` rounds the pools' sizes up.
    """
    found = []
    channels, padding = 3, first_padding
    for width, depth in zip(variant.widths, variant.depths, strict=True):
        modules: list[nn.Module] = []
        for _ in range(depth):
            modules.append(layers.Conv2d(channels, width, 3, padding=padding))
            if variant.batch_norm:
                modules.append(layers.BatchNorm2d(width))
            modules.append(nn.ReLU(inplace=True))
            channels, padding = width, 1
        modules.append(layers.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
        found.append(modules)
    return found


VARIANTS = {
    "vgg11": Variant((1, 1, 2, 2, 2), False, 132_863_336, 7_609_090_048),
    "vgg13": Variant((2, 2, 2, 2, 2), False, 133_047_848, 11_308_466_176),
    "vgg16": Variant((2, 2, 3, 3, 3), False, 138_357_544, 15_470_264_320),
    "vgg19": Variant((2, 2, 4, 4, 4), False, 143_667_240, 19_632_062_464),
    "vgg11_bn": Variant((1, 1, 2, 2, 2), True, 132_868_840, 7_609_090_048),
    "vgg13_bn": Variant((2, 2, 2, 2, 2), True, 133_053_736, 11_308_466_176),
    "vgg16_bn": Variant((2, 2, 3, 3, 3), True, 138_365_992, 15_470_264_320),
    "vgg19_bn": Variant((2, 2, 4, 4, 4), True, 143_678_248, 19_632_062_464),
}

for _name, _variant in VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(VGG, variant=_variant),
            image_size=224,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
        )
    )
