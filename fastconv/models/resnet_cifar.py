"""The residual and plain networks of 6n+2 layers with which the paper shows, on small images, what depth costs."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import CIFAR
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register
from fastconv.models.resnet import BasicBlock, Shortcut, check_shortcut

_STAGE_WIDTHS = (16, 32, 64)
_IMAGE_SIZE = 32
_CLASSES = 10


class Variant(NamedTuple):
    """One row of the paper's table 6."""

    depth: int  # layers with weights: 6n + 2
    shortcut: Shortcut
    parameters: int
    multiply_adds: int


class ResNetCifar(nn.Module):
    """ResNet for small images, [N, 3, H, W] -> logits [N, num_classes]; made for 32x32 images.

    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, section 4.2: a 3x3 convolution, three
    stages of n blocks with 16, 32 and 64 channels, shortcuts that pad with zeros, one linear layer. Parameters /
    multiply-adds at 32x32: 20 layers 0.27 M / 41 M, 32 0.46 M / 69 M, 44 0.66 M / 97 M, 56 0.85 M / 125 M,
    110 1.73 M / 253 M; the plain networks have the same. Receptive field of the last block: 20 layers 81, 32 layers
    137, 44 193, 56 249, 110 501.
    """

    def __init__(
        self, layers: ModuleType, variant: Variant, *, num_classes: int = _CLASSES, shortcut: Shortcut | None = None
    ) -> None:
        super().__init__()
        shortcut = check_shortcut(variant.shortcut if shortcut is None else shortcut)
        blocks_per_stage = (variant.depth - 2) // 6
        channels = _STAGE_WIDTHS[0]
        self.conv1 = layers.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = layers.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for stage, width in enumerate(_STAGE_WIDTHS, start=1):
            blocks = []
            for index in range(blocks_per_stage):
                stride = 2 if index == 0 and stage > 1 else 1
                blocks.append(BasicBlock(layers, channels, width, stride, shortcut))
                channels = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


_SIZES = {  # depth: parameters, multiply-adds
    20: (269_722, 40_551_040),
    32: (464_154, 68_862_592),
    44: (658_586, 97_174_144),
    56: (853_018, 125_485_696),
    110: (1_727_962, 252_887_680),
}

for _depth, _size in _SIZES.items():
    for _kind, _shortcut in (("resnet", "zero_pad"), ("plain", "none")):
        register(
            ModelInfo(
                f"{_kind}{_depth}_cifar",
                partial(ResNetCifar, variant=Variant(_depth, _shortcut, *_size)),
                _IMAGE_SIZE,
                CIFAR,
                *_size,
                classes=_CLASSES,
            )
        )
