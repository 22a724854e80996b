"""SqueezeNet: AlexNet's accuracy from a fiftieth of its parameters. State-dict keys are torchvision's."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

_POOL = "pool"
_EXPANSION = 4  # each half of a fire module's output has four times its squeezed channels


class Variant(NamedTuple):
    """One release: the stem, and what follows it: pools, and fire modules by their squeezed channels."""

    stem_channels: int
    stem_kernel: int
    plan: tuple[int | str, ...]
    smallest: int
    parameters: int
    multiply_adds: int


class Fire(nn.Module):
    """1x1 down to `squeezed` channels, then 1x1 and 3x3 up side by side: [N, C, H, W] -> [N, 8 * squeezed, H, W]."""

    def __init__(self, layers: ModuleType, in_channels: int, squeezed: int) -> None:
        super().__init__()
        expanded = squeezed * _EXPANSION
        self.squeeze = layers.Conv2d(in_channels, squeezed, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = layers.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = layers.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        one, three = self.expand1x1(x), self.expand3x3(x)
        return torch.cat([self.expand1x1_activation(one), self.expand3x3_activation(three)], dim=1)


class SqueezeNet(nn.Module):
    """SqueezeNet, [N, 3, H, W] with H, W >= 21 (1.1: 17) -> logits [N, num_classes]; made for 224x224 images.

    Iandola, Han, Moskewicz, Ashraf, Dally, Keutzer: SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and
    <0.5MB model size, 2016, section 3, table 1; release 1.1 has the same accuracy from 2.4 times fewer products.
    Parameters / multiply-adds at 224x224: 1.0 1.25 M / 0.82 G, 1.1 1.24 M / 0.35 G. Receptive field of the
    last module 155 and 207.
    """

    def __init__(self, layers: ModuleType, variant: Variant, *, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.smallest = variant.smallest
        channels = variant.stem_channels
        features: list[nn.Module] = [
            layers.Conv2d(3, channels, variant.stem_kernel, stride=2),
            nn.ReLU(inplace=True),
        ]
        for squeezed in variant.plan:
            if squeezed == _POOL:
                features.append(layers.MaxPool2d(3, stride=2, ceil_mode=True))
            else:
                features.append(Fire(layers, channels, squeezed))
                channels = 2 * _EXPANSION * squeezed
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            layers.Conv2d(channels, num_classes, 1),
            nn.ReLU(inplace=True),
            layers.AdaptiveAvgPool2d(1),
        )
        self._init_weights()

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=self.smallest)
        return self.classifier(self.features(x)).flatten(1)

    def _init_weights(self) -> None:
        """He's uniform weights, and small ones in the last layer, as torchvision draws them."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is self.classifier[1]:
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                nn.init.zeros_(module.bias)


_VARIANTS = {
    "squeezenet1_0": Variant(96, 7, (_POOL, 16, 16, 32, _POOL, 32, 48, 48, 64, _POOL, 64), 21, 1_248_424, 818_924_576),
    "squeezenet1_1": Variant(64, 3, (_POOL, 16, 16, _POOL, 32, 32, _POOL, 48, 48, 64, 64), 17, 1_235_496, 349_151_936),
}

for _name, _variant in _VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(SqueezeNet, variant=_variant),
            image_size=224,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
        )
    )
