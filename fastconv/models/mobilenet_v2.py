"""MobileNetV2: inverted residuals around depthwise convolutions. State-dict keys are torchvision's."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register

_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280


class Stage(NamedTuple):
    """One row of the paper's table 2."""

    expansion: int
    channels: int
    repeats: int
    stride: int  # of the first block; the others have 1


_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


def _conv_norm_relu6(
    layers: ModuleType, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = layers.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, layers.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, linear 1x1 down: [N, C, H, W] -> [N, out_channels, H/stride, W/stride].

    The input is added to the output where both have the same shape (section 3.3).
    """

    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        hidden = in_channels * expansion
        expand = [] if expansion == 1 else [_conv_norm_relu6(layers, in_channels, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu6(layers, hidden, hidden, 3, stride, groups=hidden),
            layers.Conv2d(hidden, out_channels, 1, bias=False),
            layers.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """MobileNetV2 at width 1, [N, 3, H, W] -> logits [N, num_classes]; made for 224x224 images.

    Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018,
    section 4, table 2. 3.5 M parameters, 0.30 G multiply-adds at 224x224; receptive field of the last convolution 491.
    """

    def __init__(self, layers: ModuleType, *, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_norm_relu6(layers, 3, _STEM_CHANNELS, 3, stride=2)]
        channels = _STEM_CHANNELS
        for stage in _STAGES:
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                features.append(InvertedResidual(layers, channels, stage.channels, stride, stage.expansion))
                channels = stage.channels
        features.append(_conv_norm_relu6(layers, channels, _HEAD_CHANNELS, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(_HEAD_CHANNELS, num_classes))
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


register(
    ModelInfo(
        name="mobilenet_v2",
        build=MobileNetV2,
        image_size=224,
        normalization=IMAGENET,
        parameters=3_504_872,
        multiply_adds=300_774_272,
    )
)
