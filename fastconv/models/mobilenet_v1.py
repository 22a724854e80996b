"""MobileNetV1: every convolution split into a depthwise and a pointwise one. State-dict keys are timm's."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register

_STEM_CHANNELS = 32

# (channels, blocks) of each stage; all but the first halve the size (table 1).
_STAGES = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))


class DepthwiseSeparable(nn.Module):
    """3x3 depthwise, 1x1 pointwise, norm and ReLU6 behind both: [N, C, H, W] -> [N, out_channels, H/stride, W/stride].

    It takes 1/out_channels + 1/9 of a full 3x3 convolution's products (section 3.1).
    """

    def __init__(self, layers: ModuleType, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = layers.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = layers.BatchNorm2d(in_channels)
        self.conv_pw = layers.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = layers.BatchNorm2d(out_channels)
        self.relu6 = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.bn1(self.conv_dw(x)))
        return self.relu6(self.bn2(self.conv_pw(x)))


class MobileNetV1(nn.Module):
    """MobileNetV1, [N, 3, H, W] -> logits [N, num_classes]; made for 224x224 images.

    Howard, Zhu, Chen, Kalenichenko, Wang, Weyand, Andreetto, Adam: MobileNets: Efficient Convolutional Neural
    Networks for Mobile Vision Applications, 2017, section 3, table 1; ReLU6 as in the authors' release. `width` is
    the multiplier of all channels. Parameters / multiply-adds at 224x224: 4.23 M / 569 M; width 0.5 1.33 M / 149 M.
    Receptive field of the last convolution 315.
    """

    def __init__(
        self, layers: ModuleType, width: float = 1.0, *, num_classes: int = 1000, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels = int(_STEM_CHANNELS * width)
        self.conv_stem = layers.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = layers.BatchNorm2d(channels)
        self.relu6 = nn.ReLU6(inplace=True)
        stages = []
        for stage, (full, count) in enumerate(_STAGES):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and stage > 0 else 1
                blocks.append(DepthwiseSeparable(layers, channels, int(full * width), stride))
                channels = int(full * width)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self, linear_std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x)
        x = self.blocks(self.relu6(self.bn1(self.conv_stem(x))))
        return self.classifier(self.dropout(self.avgpool(x).flatten(1)))


for _name, _width, _parameters, _multiply_adds in (
    ("mobilenet_v1", 1.0, 4_231_976, 568_740_352),
    ("mobilenet_v1_050", 0.5, 1_331_592, 149_497_088),
):
    register(ModelInfo(_name, partial(MobileNetV1, width=_width), 224, IMAGENET, _parameters, _multiply_adds))
