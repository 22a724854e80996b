"""DenseNet: every layer sees the outputs of all layers before it. State-dict keys are torchvision's."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import CIFAR, IMAGENET
from fastconv.models.registry import ModelInfo, register

_BOTTLENECK = 4  # 1x1 convolutions make 4 * growth channels


class Variant(NamedTuple):
    """One column of the paper's table 1, or one row of its table 2."""

    growth: int
    depths: tuple[int, ...]  # layers per dense block
    stem_channels: int
    parameters: int
    multiply_adds: int
    bottleneck: bool = True  # with 1x1 convolutions, and transitions that halve the channels: DenseNet-BC
    cifar: bool = False  # a stem that keeps the size, for images of 32 pixels


class DenseLayer(nn.Module):
    """[N, C, H, W], the concatenation of all maps so far -> [N, growth, H, W] new ones.

    Norm, ReLU and convolution, in this order: a 1x1 bottleneck and a 3x3, or the 3x3 alone.
    """

    def __init__(self, layers: ModuleType, in_channels: int, growth: int, bottleneck: bool, dropout: float) -> None:
        super().__init__()
        self.norm1 = layers.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.bottleneck = bottleneck
        if bottleneck:
            self.conv1 = layers.Conv2d(in_channels, _BOTTLENECK * growth, 1, bias=False)
            self.norm2 = layers.BatchNorm2d(_BOTTLENECK * growth)
            self.relu2 = nn.ReLU(inplace=True)
            self.conv2 = layers.Conv2d(_BOTTLENECK * growth, growth, 3, padding=1, bias=False)
        else:
            self.conv1 = layers.Conv2d(in_channels, growth, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.conv1(self.relu1(self.norm1(torch.cat(maps, dim=1))))
        if self.bottleneck:
            x = self.conv2(self.relu2(self.norm2(x)))
        return self.dropout(x)


class DenseBlock(nn.ModuleDict):
    """`depth` dense layers of one size: [N, C, H, W] -> [N, C + depth * growth, H, W]."""

    def __init__(
        self, layers: ModuleType, depth: int, in_channels: int, growth: int, bottleneck: bool, dropout: float
    ) -> None:
        super().__init__()
        for index in range(depth):
            channels = in_channels + index * growth
            self[f"denselayer{index + 1}"] = DenseLayer(layers, channels, growth, bottleneck, dropout)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.values():
            maps.append(layer(maps))
        return torch.cat(maps, dim=1)


class Transition(nn.Sequential):
    """Norm, ReLU, 1x1 convolution and a 2x2 average: [N, C, H, W] -> [N, out_channels, H/2, W/2]."""

    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = layers.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = layers.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = layers.AvgPool2d(2, stride=2)


class DenseNet(nn.Module):
    """DenseNet, [N, 3, H, W] -> logits [N, num_classes]; made for 224x224 images, the CIFAR forms for 32x32.

    Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, 2016, sections 3 and 4.1,
    tables 1 and 2. Parameters / multiply-adds at 224x224: DenseNet-121 8.0 M / 2.83 G, -161 28.7 M / 7.73 G,
    -169 14.1 M / 3.36 G, -201 20.0 M / 4.29 G; at 32x32: 40 layers of growth 12 1.0 M / 0.26 G, BC with 100 layers
    0.8 M / 0.29 G. H and W are at least 29; 4 in the CIFAR forms. Receptive field of the last layer 2071, 2967,
    3351, 3863; 174, 230.
    """

    def __init__(self, layers: ModuleType, variant: Variant, *, num_classes: int = 1000, dropout: float = 0.0) -> None:
        super().__init__()
        growth, channels = variant.growth, variant.stem_channels
        self.smallest = 4 if variant.cifar else 29
        self.features = nn.Sequential()
        if variant.cifar:
            self.features.add_module("conv0", layers.Conv2d(3, channels, 3, padding=1, bias=False))
        else:
            self.features.add_module("conv0", layers.Conv2d(3, channels, 7, stride=2, padding=3, bias=False))
            self.features.add_module("norm0", layers.BatchNorm2d(channels))
            self.features.add_module("relu0", nn.ReLU(inplace=True))
            self.features.add_module("pool0", layers.MaxPool2d(3, stride=2, padding=1))

        for stage, depth in enumerate(variant.depths, start=1):
            block = DenseBlock(layers, depth, channels, growth, variant.bottleneck, dropout)
            self.features.add_module(f"denseblock{stage}", block)
            channels += depth * growth
            if stage < len(variant.depths):
                kept = channels // 2 if variant.bottleneck else channels
                self.features.add_module(f"transition{stage}", Transition(layers, channels, kept))
                channels = kept
        self.features.add_module(f"norm{len(variant.depths) + 1}", layers.BatchNorm2d(channels))
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        self._init_weights()

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=self.smallest)
        return self.classifier(self.avgpool(self.relu(self.features(x))).flatten(1))

    def _init_weights(self) -> None:
        """He's initialization counted by fan in, as torchvision draws it; linear weights stay torch's own."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


_VARIANTS = {
    "densenet121": Variant(32, (6, 12, 24, 16), 64, 7_978_856, 2_834_161_664),
    "densenet161": Variant(48, (6, 12, 36, 24), 96, 28_681_000, 7_727_907_072),
    "densenet169": Variant(32, (6, 12, 32, 32), 64, 14_149_480, 3_359_843_328),
    "densenet201": Variant(32, (6, 12, 48, 32), 64, 20_013_928, 4_291_365_888),
    "densenet40_cifar": Variant(12, (12, 12, 12), 16, 1_019_722, 264_812_928, bottleneck=False, cifar=True),
    "densenet100_cifar": Variant(12, (16, 16, 16), 24, 769_162, 287_929_692, cifar=True),
}

for _name, _variant in _VARIANTS.items():
    _classes = 10 if _variant.cifar else 1000
    register(
        ModelInfo(
            name=_name,
            build=partial(DenseNet, variant=_variant, num_classes=_classes),
            image_size=32 if _variant.cifar else 224,
            normalization=CIFAR if _variant.cifar else IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
            classes=_classes,
        )
    )
