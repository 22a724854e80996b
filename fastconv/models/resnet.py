"""ResNet: residual networks of 18 to 152 layers, and the plain ones beside them. State-dict keys are torchvision's."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register

_STEM_CHANNELS = 64
_STAGE_WIDTHS = (64, 128, 256, 512)

# Options A, B and C of section 4.1: where a block changes the shape its shortcut pads with zeros or projects; or all
# shortcuts project; "none" builds the plain network of the same layers.
Shortcut = Literal["zero_pad", "projection", "all_projections", "none"]


def _conv3x3(layers: ModuleType, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return layers.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False)


def _conv1x1(layers: ModuleType, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return layers.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class ZeroPad(nn.Module):
    """The shortcut without parameters: every stride-th pixel, and zeros for the channels the input lacks."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))


def _shortcut(layers: ModuleType, kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """What stands on the way around a block, or None for the identity."""
    if kind == "none" or (kind != "all_projections" and stride == 1 and in_channels == out_channels):
        return None
    if kind == "zero_pad":
        return ZeroPad(in_channels, out_channels, stride)
    return nn.Sequential(_conv1x1(layers, in_channels, out_channels, stride), layers.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [N, C, H, W] -> [N, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(
        self,
        layers: ModuleType,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: Shortcut = "projection",
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(layers, in_channels, width, stride, dilation)
        self.bn1 = layers.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(layers, width, width, dilation=dilation)
        self.bn2 = layers.BatchNorm2d(width)
        self.residual = shortcut != "none"
        self.downsample = _shortcut(layers, shortcut, in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + shortcut if self.residual else y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: [N, C, H, W] -> [N, 4*width, H/stride, W/stride].

    The stride sits on the 3x3 convolution ("v1.5"), not on the first 1x1 as in the paper: the 1x1 with a
    stride would throw three quarters of its input away.
    """

    expansion = 4

    def __init__(
        self,
        layers: ModuleType,
        in_channels: int,
        width: int,
        stride: int,
        shortcut: Shortcut = "projection",
        dilation: int = 1,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _conv1x1(layers, in_channels, width)
        self.bn1 = layers.BatchNorm2d(width)
        self.conv2 = _conv3x3(layers, width, width, stride, dilation)
        self.bn2 = layers.BatchNorm2d(width)
        self.conv3 = _conv1x1(layers, width, out_channels)
        self.bn3 = layers.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.residual = shortcut != "none"
        self.downsample = _shortcut(layers, shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + shortcut if self.residual else y)


class Variant(NamedTuple):
    """One column of the paper's table 1."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]  # blocks per stage
    parameters: int
    multiply_adds: int
    shortcut: Shortcut = "projection"


class ResNet(nn.Module):
    """ResNet, [N, 3, H, W] -> logits [N, num_classes]; made for 224x224 images.

    He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, sections 3.3 and 4.1, table 1.
    Parameters / multiply-adds at 224x224: ResNet-18 11.7 M / 1.81 G, -34 21.8 M / 3.66 G,
    -50 25.6 M / 4.09 G, -101 44.5 M / 7.80 G, -152 60.2 M / 11.51 G. Receptive field of the last block 435, 899,
    427, 971, 1451. The plain networks of 18 and 34 layers, which have no shortcuts, are `plain18` and `plain34`.

    `replace_stride_with_dilation` tells of stages 2 to 4 which keep their input's size: what would be their stride
    spreads the windows behind it instead (Yu, Koltun: Multi-Scale Context Aggregation by Dilated Convolutions, 2015).
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int = 1000,
        shortcut: Shortcut | None = None,
        replace_stride_with_dilation: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        super().__init__()
        shortcut = check_shortcut(variant.shortcut if shortcut is None else shortcut)
        self.conv1 = layers.Conv2d(3, _STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = layers.BatchNorm2d(_STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = layers.MaxPool2d(3, stride=2, padding=1)

        channels, dilation = _STEM_CHANNELS, 1
        stages = zip(_STAGE_WIDTHS, variant.depths, (False, *replace_stride_with_dilation), strict=True)
        for stage, (width, depth, dilated) in enumerate(stages, start=1):
            stride = 1 if stage == 1 or dilated else 2  # stage 1 follows the max pool
            blocks = [variant.block(layers, channels, width, stride, shortcut, dilation)]
            channels = width * variant.block.expansion
            dilation *= 2 if dilated else 1
            blocks += [variant.block(layers, channels, width, 1, shortcut, dilation) for _ in range(depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))

        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class ResNetMaps(ResNet):
    """ResNet without its classifier: [N, 3, H, W] -> the maps of its four stages, strides 4, 8, 16 and 32."""

    def __init__(self, layers: ModuleType, variant: Variant, **options) -> None:
        super().__init__(layers, variant, **options)
        self.channels = self.fc.in_features
        del self.avgpool, self.fc

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


def check_shortcut(shortcut: str) -> Shortcut:
    """`shortcut` itself; a ValueError that names the kinds if it is none of them."""
    if shortcut not in get_args(Shortcut):
        known = ", ".join(map(repr, get_args(Shortcut)))
        raise ValueError(f"The argument shortcut={shortcut!r} must be one of {known}.")
    return shortcut


VARIANTS = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2), 11_689_512, 1_814_073_344),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3), 21_797_672, 3_663_761_408),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3), 25_557_032, 4_089_184_256),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3), 44_549_160, 7_801_405_440),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3), 60_192_808, 11_513_626_624),
    "plain18": Variant(BasicBlock, (2, 2, 2, 2), 11_515_688, 1_794_805_760, "none"),
    "plain34": Variant(BasicBlock, (3, 4, 6, 3), 21_623_848, 3_644_493_824, "none"),
}

for _name, _variant in VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(ResNet, variant=_variant),
            image_size=224,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
        )
    )
