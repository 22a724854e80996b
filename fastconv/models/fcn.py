"""FCN-32s, 16s, 8s: VGG-16 made fully convolutional, and its scores brought back to the image's size."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register
from fastconv.models.vgg import VARIANTS as VGG_VARIANTS
from fastconv.models.vgg import Variant as VGGVariant
from fastconv.models.vgg import stages

_CLASSES = 21  # PASCAL VOC's 20 and the background
_HIDDEN = 4096
_WINDOW = 7  # of the first layer of VGG's classifier
_PADDING = 100  # of the first convolution, so that the smallest image still fills the classifier's window
# Pixels cut from the top and the left of what is added or returned: where the paddings and windows begin.
_CROP_POOL4, _CROP_POOL3 = 5, 9


class Variant(NamedTuple):
    """One network of section 4.2: the stride of its last upsampling, and the pixels cut from its result."""

    stride: int
    crop: int
    parameters: int
    multiply_adds: int


def bilinear_upsampling(layers: ModuleType, channels: int, stride: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear interpolation of each channel by `stride`.

    Its window is twice the stride, and weights fall off linearly from its center (section 3.3).
    """
    kernel = 2 * stride
    layer = layers.ConvTranspose2d(channels, channels, kernel, stride=stride, bias=False)
    ramp = 1 - (torch.arange(kernel) - (stride - 0.5)).abs() / stride
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight.diagonal().copy_(torch.outer(ramp, ramp).unsqueeze(-1).expand(-1, -1, channels))
    return layer


def _cut(x: Tensor, offset: int, like: Tensor) -> Tensor:
    """The window of [N, C, H, W] that begins at (offset, offset) and has the height and width of `like`."""
    return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]


class FCN(nn.Module):
    """FCN, [N, 3, H, W] -> logits of every pixel, [N, num_classes, H, W]; parameters and products for 500x500.

    Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, 2014, sections 3 and 4, figure 3,
    with the paddings and crops of the authors' release. Scores of stride 32 are upsampled at once (32s), or
    first added to those of the pools of stride 16 (16s) and 8 (8s). The last upsampling is fixed. `features` and
    `classifier` have the keys of `to_fully_convolutional` of VGG-16. Trainable parameters / multiply-adds: 32s
    134.35 M / 181.4 G, 16s 134.36 M / 181.4 G, 8s 134.38 M / 181.5 G; receptive field of the scores 404.
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int = _CLASSES,
        dropout: float = 0.5,
        hidden: int = _HIDDEN,
        backbone: VGGVariant = VGG_VARIANTS["vgg16"],
    ) -> None:
        super().__init__()
        self.stride, self.crop = variant.stride, variant.crop
        parts = stages(layers, backbone, first_padding=_PADDING, ceil_mode=True)
        self.features = nn.Sequential(*(module for part in parts for module in part))
        # Where the third and the fourth stage end.
        self.pool3 = sum(map(len, parts[:3]))
        self.pool4 = self.pool3 + len(parts[3])
        self.classifier = nn.Sequential(
            layers.Conv2d(backbone.widths[4], hidden, _WINDOW),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            layers.Conv2d(hidden, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            layers.Conv2d(hidden, num_classes, 1),
        )
        scores = [self.classifier[-1]]
        if self.stride <= 16:
            self.score_pool4 = layers.Conv2d(backbone.widths[3], num_classes, 1)
            self.upsample_to_pool4 = bilinear_upsampling(layers, num_classes, 2)
            scores.append(self.score_pool4)
        if self.stride <= 8:
            self.score_pool3 = layers.Conv2d(backbone.widths[2], num_classes, 1)
            self.upsample_to_pool3 = bilinear_upsampling(layers, num_classes, 2)
            scores.append(self.score_pool3)
        self.upsample = bilinear_upsampling(layers, num_classes, self.stride)
        self.upsample.weight.requires_grad_(False)
        for score in scores:  # no class is preferred at the start
            nn.init.zeros_(score.weight)
            nn.init.zeros_(score.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x)
        y = x
        for index, layer in enumerate(self.features, start=1):
            y = layer(y)
            if index == self.pool3:
                pool3 = y
            if index == self.pool4:
                pool4 = y
        scores = self.classifier(y)
        if self.stride <= 16:
            scores = self.upsample_to_pool4(scores)
            scores = scores + _cut(self.score_pool4(pool4), _CROP_POOL4, scores)
        if self.stride <= 8:
            scores = self.upsample_to_pool3(scores)
            scores = scores + _cut(self.score_pool3(pool3), _CROP_POOL3, scores)
        return _cut(self.upsample(scores), self.crop, x).contiguous()


VARIANTS = {
    "fcn32s": Variant(32, 19, 134_346_581, 181_365_854_976),
    "fcn16s": Variant(16, 27, 134_364_410, 181_448_086_272),
    "fcn8s": Variant(8, 31, 134_376_863, 181_529_034_048),
}

for _name, _variant in VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(FCN, variant=_variant),
            image_size=500,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
            classes=_CLASSES,
            dense=True,
        )
    )
