"""EfficientNet-Lite0 to 4. State-dict keys are those of the package efficientnet_lite_pytorch; `from_timm`
makes them of timm's.

Padding is TensorFlow's "same": the output has ceil(size / stride) pixels, and where the padding is odd the
extra pixel goes to the bottom and the right. It is fixed when the model is built, from `image_size`; other
sizes run, with the padding made for `image_size`. Symmetric padding goes into the convolution itself; only
the asymmetric one, in layers with stride 2, costs a separate pad layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_image_size, check_images
from fastconv.models.images import SIGNED_UNIT
from fastconv.models.registry import ModelInfo, register

_STEM_CHANNELS = 32  # stem and head are not scaled with the width
_HEAD_CHANNELS = 1280
_CHANNEL_MULTIPLE = 8
_SMALLEST = 32

# TensorFlow's batch norm: epsilon 1e-3, and a decay of 0.99 where torch counts the new share.
_NORM = {"eps": 1e-3, "momentum": 0.01}


class Stage(NamedTuple):
    """One row of the paper's table 1, for width and depth 1."""

    repeats: int
    kernel: int
    stride: int  # of the first block; the others have 1
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """One network of the family: factors on width and depth, image side in pixels, dropout."""

    width: float
    depth: float
    image_size: int
    dropout: float
    parameters: int
    multiply_adds: int


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels to add before and after an axis of `size` pixels so that ceil(size / stride) come out."""
    out_size = math.ceil(size / stride)
    total = max((out_size - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _same_conv(
    layers: ModuleType,
    size: int,
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    groups: int = 1,
) -> tuple[nn.Module, nn.Conv2d]:
    """A pad layer and a convolution which together pad "same" for an input of `size` x `size` pixels."""
    before, after = same_padding(size, kernel, stride)
    symmetric = before == after
    pad = nn.Identity() if symmetric else nn.ZeroPad2d((before, after, before, after))
    padding = before if symmetric else 0
    conv = layers.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    return pad, conv


def _drop_connect(x: Tensor, rate: float) -> Tensor:
    """Zero whole samples of [N, C, H, W] with probability `rate` and scale the others to keep the mean."""
    keep = 1 - rate
    mask = torch.floor(keep + torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device))
    return x / keep * mask


class MBConvBlock(nn.Module):
    """1x1 up, kxk depthwise, linear 1x1 down: [N, C, H, W] -> [N, out_channels, H/stride, W/stride].

    The input is added where it has the output's shape; in training the branch is then dropped for a sample
    with probability `drop_connect`. `size` is the input's side in pixels; the output's is rounded up.
    """

    def __init__(
        self,
        layers: ModuleType,
        size: int,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        drop_connect: float,
    ) -> None:
        super().__init__()
        self.expands = expansion != 1
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_connect = drop_connect
        hidden = in_channels * expansion
        if self.expands:
            self._expand_conv = layers.Conv2d(in_channels, hidden, 1, bias=False)
            self._bn0 = layers.BatchNorm2d(hidden, **_NORM)
        self._pad, self._depthwise_conv = _same_conv(layers, size, hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = layers.BatchNorm2d(hidden, **_NORM)
        self._project_conv = layers.Conv2d(hidden, out_channels, 1, bias=False)
        self._bn2 = layers.BatchNorm2d(out_channels, **_NORM)
        self._relu6 = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self._relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._relu6(self._bn1(self._depthwise_conv(self._pad(y))))
        y = self._bn2(self._project_conv(y))
        if not self.residual:
            return y
        if self.training and self.drop_connect > 0:
            y = _drop_connect(y, self.drop_connect)
        return x + y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite, [N, 3, H, W] -> logits [N, num_classes]; made for images of the sides below.

    Tan, Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019, sections 3 and 4,
    table 1; without squeeze-and-excitation and with ReLU6 instead of swish, stem and head unscaled: Liu,
    Higher accuracy on vision models with EfficientNet-Lite, TensorFlow blog, 2020.
    Image side, parameters / multiply-adds: Lite0 224, 4.7 M / 0.39 G; Lite1 240, 5.4 M / 0.60 G;
    Lite2 260, 6.1 M / 0.86 G; Lite3 280, 8.2 M / 1.38 G; Lite4 300, 13.0 M / 2.55 G.
    Receptive field of the last convolution 851, 1115, 1115, 1339, 1731.

    Paddings are those of `image_size`, the side above by default; other images have sides of at least 32, or of
    `image_size` if that is less. ValueError for an `image_size` below 1.
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int = 1000,
        image_size: int | None = None,
        dropout: float | None = None,
        drop_connect: float = 0.2,
    ) -> None:
        super().__init__()
        size = check_image_size(self, variant.image_size if image_size is None else image_size, 1)
        self._smallest = min(_SMALLEST, size)  # paddings for a larger image do not fill every layer's window
        self._pad, self._conv_stem = _same_conv(layers, size, 3, _STEM_CHANNELS, 3, stride=2)
        self._bn0 = layers.BatchNorm2d(_STEM_CHANNELS, **_NORM)
        size = math.ceil(size / 2)

        self._blocks = nn.ModuleList()
        plan = _scaled_blocks(variant)
        channels = _STEM_CHANNELS
        for index, stage in enumerate(plan):
            rate = drop_connect * index / len(plan)  # deeper blocks are dropped more often
            self._blocks.append(
                MBConvBlock(layers, size, channels, stage.channels, stage.kernel, stage.stride, stage.expansion, rate)
            )
            channels = stage.channels
            size = math.ceil(size / stage.stride)

        self._conv_head = layers.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)
        self._bn1 = layers.BatchNorm2d(_HEAD_CHANNELS, **_NORM)
        self._relu6 = nn.ReLU6(inplace=True)
        self._avg_pooling = layers.AdaptiveAvgPool2d(1)
        self._dropout = nn.Dropout(variant.dropout if dropout is None else dropout)
        self._fc = nn.Linear(_HEAD_CHANNELS, num_classes)
        self._init_weights()

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=self._smallest)
        x = self._relu6(self._bn0(self._conv_stem(self._pad(x))))
        for block in self._blocks:
            x = block(x)
        x = self._relu6(self._bn1(self._conv_head(x)))
        return self._fc(self._dropout(self._avg_pooling(x).flatten(1)))

    def _init_weights(self) -> None:
        """He's initialization, fan out counted per group: depthwise outputs must not drown in the epsilon."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


def _scaled_blocks(variant: Variant) -> list[Stage]:
    """The blocks of a variant, one row each: width and depth scaled, strides only where a stage begins."""
    blocks = []
    for index, stage in enumerate(STAGES):
        is_fixed = index in (0, len(STAGES) - 1)  # the first and the last stage keep their depth
        repeats = stage.repeats if is_fixed else math.ceil(variant.depth * stage.repeats)
        first = stage._replace(repeats=1, channels=scaled_channels(stage.channels, variant.width))
        blocks += [first] + [first._replace(stride=1)] * (repeats - 1)
    return blocks


def scaled_channels(channels: int, width: float) -> int:
    """`channels * width`, rounded to a multiple of 8 that is not more than 10 % below."""
    scaled = channels * width
    rounded = int(scaled + _CHANNEL_MULTIPLE / 2) // _CHANNEL_MULTIPLE * _CHANNEL_MULTIPLE
    rounded = max(_CHANNEL_MULTIPLE, rounded)
    return rounded if rounded >= 0.9 * scaled else rounded + _CHANNEL_MULTIPLE


# timm's names of a block's layers, in its first stage, which does not expand, and in the others.
_TIMM_FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_TIMM_BLOCK = {
    **{"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"},
    **{"conv_pwl": "_project_conv", "bn3": "_bn2"},
}
_TIMM = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of timm's `tf_efficientnet_liteN` under the names of `efficientnet_liteN`.

    "blocks.S.B." is block B of stage S there; here all blocks are counted through.
    """
    places = sorted({tuple(map(int, key.split(".")[1:3])) for key in state if key.startswith("blocks.")})
    numbers = {place: number for number, place in enumerate(places)}
    renamed = {}
    for key, value in state.items():
        part, *rest = key.split(".")
        if part == "blocks":
            stage, block, layer, *rest = rest
            names = _TIMM_BLOCK if int(stage) else _TIMM_FIRST
            part = f"_blocks.{numbers[int(stage), int(block)]}.{names[layer]}"
        else:
            part = _TIMM[part]
        renamed[".".join([part, *rest])] = value
    return renamed


_VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224, 0.2, 4_652_008, 385_187_552),
    "efficientnet_lite1": Variant(1.0, 1.1, 240, 0.2, 5_416_680, 600_185_232),
    "efficientnet_lite2": Variant(1.1, 1.2, 260, 0.3, 6_092_072, 859_736_272),
    "efficientnet_lite3": Variant(1.2, 1.4, 280, 0.3, 8_197_096, 1_383_321_872),
    "efficientnet_lite4": Variant(1.4, 1.8, 300, 0.3, 13_006_568, 2_553_034_336),
}

for _name, _variant in _VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(EfficientNetLite, variant=_variant),
            image_size=_variant.image_size,
            normalization=SIGNED_UNIT,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
        )
    )
