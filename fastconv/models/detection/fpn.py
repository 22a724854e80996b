"""A pyramid of maps: ResNet's four stages, each with the meaning of the deepest and the places of its own."""

from __future__ import annotations

from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models.resnet import ResNetMaps
from fastconv.models.resnet import Variant as ResNetVariant


class FPN(nn.Module):
    """Lin et al.: Feature Pyramid Networks for Object Detection, 2016, section 3.

    Maps of growing stride -> as many of `channels` each, with a last one of every second pixel of the deepest.
    """

    def __init__(self, layers: ModuleType, inputs: list[int], channels: int) -> None:
        super().__init__()
        self.inner_blocks, self.layer_blocks = nn.ModuleList(), nn.ModuleList()
        for width in inputs:
            self.inner_blocks.append(nn.Sequential(layers.Conv2d(width, channels, 1)))
            self.layer_blocks.append(nn.Sequential(layers.Conv2d(channels, channels, 3, padding=1)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        self.subsample = layers.MaxPool2d(1, stride=2)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        sums, above = [], None
        for features, inner in zip(reversed(maps), reversed(self.inner_blocks), strict=True):
            own = inner(features)
            above = own if above is None else own + F.interpolate(above, size=own.shape[2:], mode="nearest")
            sums.insert(0, above)
        results = [block(features) for block, features in zip(self.layer_blocks, sums, strict=True)]
        return [*results, self.subsample(results[-1])]


class ResNetFPN(nn.Module):
    """[N, 3, H, W] with H, W multiples of 32 -> five maps of `channels`, strides 4 to 64."""

    def __init__(self, layers: ModuleType, variant: ResNetVariant, channels: int) -> None:
        super().__init__()
        self.body = ResNetMaps(layers, variant)
        widths = [self.body.channels // 8, self.body.channels // 4, self.body.channels // 2, self.body.channels]
        self.fpn = FPN(layers, widths, channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fpn(self.body(x))
