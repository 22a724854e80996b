"""EfficientNet-B0 to B7: one network scaled in width, depth and image size. State-dict keys are torchvision's."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.efficientnet_lite import STAGES, Stage, scaled_channels
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

_STEM_CHANNELS = 32
_HEAD_FACTOR = 4  # the head has four times the channels of the last stage
_SQUEEZE = 4  # squeeze-and-excitation squeezes to a quarter of a block's input channels


class Variant(NamedTuple):
    """One network of the family: factors on width and depth, image side in pixels, dropout."""

    width: float
    depth: float
    image_size: int
    dropout: float
    parameters: int
    multiply_adds: int
    norm: dict[str, float] = {}  # noqa: RUF012  (never changed)


def _conv_norm(
    layers: ModuleType,
    norm: dict[str, float],
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    conv = layers.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    rest = [nn.SiLU(inplace=True)] if activation else []
    return nn.Sequential(conv, layers.BatchNorm2d(out_channels, **norm), *rest)


class SqueezeExcitation(nn.Module):
    """[N, C, H, W] times a factor between 0 and 1 for each channel, which a small network makes of the averages.

    Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2017, section 3.
    """

    def __init__(self, layers: ModuleType, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.fc1 = layers.Conv2d(channels, squeezed, 1)
        self.fc2 = layers.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU(inplace=True)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x


class StochasticDepth(nn.Module):
    """Drops whole samples of [N, C, H, W] with probability `rate` in training and scales the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class MBConv(nn.Module):
    """1x1 up, kxk depthwise, squeeze-and-excitation, linear 1x1 down; the input is added where shapes agree.

    [N, C, H, W] -> [N, stage.channels, H/stride, W/stride], rounded up.
    """

    def __init__(
        self, layers: ModuleType, norm: dict[str, float], in_channels: int, stage: Stage, drop_rate: float
    ) -> None:
        super().__init__()
        hidden = in_channels * stage.expansion
        conv = partial(_conv_norm, layers, norm)
        expand = [] if stage.expansion == 1 else [conv(in_channels, hidden, 1)]
        self.block = nn.Sequential(
            *expand,
            conv(hidden, hidden, stage.kernel, stage.stride, groups=hidden),
            SqueezeExcitation(layers, hidden, max(1, in_channels // _SQUEEZE)),
            conv(hidden, stage.channels, 1, activation=False),
        )
        self.stochastic_depth = StochasticDepth(drop_rate)
        self.residual = stage.stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return self.stochastic_depth(y) + x if self.residual else y


class EfficientNet(nn.Module):
    """EfficientNet, [N, 3, H, W] -> logits [N, num_classes]; made for images of the sides below.

    Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019, sections 3 and 4, table 1.
    Image side, parameters / multiply-adds: B0 224, 5.3 M / 0.39 G; B1 240, 7.8 M / 0.69 G; B2 288 (in the paper
    260), 9.1 M / 1.09 G; B3 300, 12.2 M / 1.83 G; B4 380, 19.3 M / 4.39 G; B5 456, 30.4 M / 10.27 G; B6 528,
    43.0 M / 19.07 G; B7 600, 66.3 M / 37.75 G. Receptive field: all of the image, by the squeezes.
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int = 1000,
        dropout: float | None = None,
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__()
        conv = partial(_conv_norm, layers, variant.norm)
        channels = scaled_channels(_STEM_CHANNELS, variant.width)
        features: list[nn.Module] = [conv(3, channels, 3, stride=2)]
        depths = [math.ceil(stage.repeats * variant.depth) for stage in STAGES]
        done = 0
        for stage, depth in zip(STAGES, depths, strict=True):
            stage = stage._replace(channels=scaled_channels(stage.channels, variant.width))
            blocks = []
            for _ in range(depth):
                rate = drop_rate * done / sum(depths)  # deeper blocks are dropped more often
                blocks.append(MBConv(layers, variant.norm, channels, stage, rate))
                channels, stage, done = stage.channels, stage._replace(stride=1), done + 1
            features.append(nn.Sequential(*blocks))
        features.append(conv(channels, _HEAD_FACTOR * channels, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(variant.dropout if dropout is None else dropout),
            nn.Linear(_HEAD_FACTOR * channels, num_classes),
        )
        self._init_weights(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))

    def _init_weights(self, num_classes: int) -> None:
        """As torchvision draws them: He's for convolutions, uniform by fan out for the classifier."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, -(num_classes**-0.5), num_classes**-0.5)
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)


_LARGE = {"eps": 1e-3, "momentum": 0.01}  # the batch norm of B5 to B7

_VARIANTS = {
    "efficientnet_b0": Variant(1.0, 1.0, 224, 0.2, 5_288_548, 385_814_752),
    "efficientnet_b1": Variant(1.0, 1.1, 240, 0.2, 7_794_184, 686_802_832),
    "efficientnet_b2": Variant(1.1, 1.2, 288, 0.3, 9_109_994, 1_087_529_456),
    "efficientnet_b3": Variant(1.2, 1.4, 300, 0.3, 12_233_232, 1_827_141_392),
    "efficientnet_b4": Variant(1.4, 1.8, 380, 0.4, 19_341_616, 4_393_771_024),
    "efficientnet_b5": Variant(1.6, 2.2, 456, 0.4, 30_389_784, 10_266_384_752, _LARGE),
    "efficientnet_b6": Variant(1.8, 2.6, 528, 0.5, 43_040_704, 19_067_593_536, _LARGE),
    "efficientnet_b7": Variant(2.0, 3.1, 600, 0.5, 66_347_960, 37_745_884_192, _LARGE),
}

for _name, _variant in _VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(EfficientNet, variant=_variant),
            image_size=_variant.image_size,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
        )
    )
