"""GoogLeNet, also called Inception v1. State-dict keys are torchvision's."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

_AUX_SIZE = 4  # the auxiliary classifiers see a 4x4 map
_AUX_HIDDEN = 1024

_NORM = {"eps": 1e-3}
_NEIGHBOURS = 5
_RESPONSE = {"size": _NEIGHBOURS, "alpha": 1e-4, "beta": 0.75, "k": 1.0}  # of the authors' release


class Widths(NamedTuple):
    """Channels of one inception module: a row of the paper's table 1."""

    one: int
    three_reduced: int
    three: int
    five_reduced: int
    five: int
    pooled: int


_MODULES = {
    "3a": Widths(64, 96, 128, 16, 32, 32),
    "3b": Widths(128, 128, 192, 32, 96, 64),
    "4a": Widths(192, 96, 208, 16, 48, 64),
    "4b": Widths(160, 112, 224, 24, 64, 64),
    "4c": Widths(128, 128, 256, 24, 64, 64),
    "4d": Widths(112, 144, 288, 32, 64, 64),
    "4e": Widths(256, 160, 320, 32, 128, 128),
    "5a": Widths(256, 160, 320, 32, 128, 128),
    "5b": Widths(384, 192, 384, 48, 128, 128),
}


class GoogLeNetOutputs(NamedTuple):
    """Logits [N, num_classes] of the three classifiers, in training; section 5 weighs the auxiliary ones by 0.3."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


class Variant(NamedTuple):
    """torchvision's network, or the paper's."""

    batch_norm: bool  # or local response norms around the stem
    five: int  # the kernel of the branch called 5x5
    smallest: int
    parameters: int
    multiply_adds: int


class BasicConv2d(nn.Module):
    """Convolution, batch norm where the variant has it, ReLU; the size is kept for stride 1."""

    def __init__(
        self, layers: ModuleType, norm: bool, in_channels: int, out_channels: int, kernel: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = layers.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=not norm)
        self.bn = layers.BatchNorm2d(out_channels, **_NORM) if norm else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.relu(x if self.bn is None else self.bn(x))


class Inception(nn.Module):
    """Four branches side by side, [N, C, H, W] -> [N, out_channels, H, W] (figure 2).

    1x1 convolutions reduce the channels in front of the large filters and behind the pool; a `naive` module has
    none of them (figure 2a), and its pool passes all its channels on.
    """

    def __init__(
        self, layers: ModuleType, variant: Variant, in_channels: int, widths: Widths, naive: bool = False
    ) -> None:
        super().__init__()
        conv = partial(BasicConv2d, layers, variant.batch_norm)
        pool = layers.MaxPool2d(3, stride=1, padding=1, ceil_mode=True)
        self.branch1 = conv(in_channels, widths.one, 1)
        if naive:
            self.branch2 = conv(in_channels, widths.three, 3)
            self.branch3 = conv(in_channels, widths.five, variant.five)
            self.branch4 = pool
        else:
            reduced, five = widths.five_reduced, variant.five
            self.branch2 = nn.Sequential(
                conv(in_channels, widths.three_reduced, 1), conv(widths.three_reduced, widths.three, 3)
            )
            self.branch3 = nn.Sequential(conv(in_channels, reduced, 1), conv(reduced, widths.five, five))
            self.branch4 = nn.Sequential(pool, conv(in_channels, widths.pooled, 1))
        self.out_channels = widths.one + widths.three + widths.five + (in_channels if naive else widths.pooled)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class InceptionAux(nn.Module):
    """A classifier half way, [N, C, H, W] -> logits [N, num_classes]; it brings gradients to the lower layers."""

    def __init__(self, layers: ModuleType, norm: bool, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.avgpool = layers.AdaptiveAvgPool2d(_AUX_SIZE)
        self.conv = BasicConv2d(layers, norm, in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * _AUX_SIZE**2, _AUX_HIDDEN)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(_AUX_HIDDEN, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.avgpool(x)).flatten(1)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))


class GoogLeNet(nn.Module):
    """GoogLeNet, [N, 3, H, W] with H, W >= 15 (2014: 31) -> logits [N, num_classes]; made for 224x224 images.

    Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke, Rabinovich: Going Deeper with Convolutions, 2014,
    section 5, table 1, figures 2 and 3. The paper's network has local response norms and 5x5 filters
    (`googlenet_2014`: 13.38 M parameters, 1.58 G multiply-adds); torchvision's has batch norm and 3x3 ones in their
    place (`googlenet`: 13.00 M, 1.50 G). The auxiliary classifiers have 6.4 M of the parameters and run in
    training only, where the result is a `GoogLeNetOutputs`. Receptive field of the last module 379 (2014: 651).
    """

    def __init__(
        self,
        layers: ModuleType,
        variant: Variant,
        *,
        num_classes: int = 1000,
        aux_logits: bool = True,
        naive: bool = False,
        dropout: float | None = None,
        dropout_aux: float = 0.7,
    ) -> None:
        super().__init__()
        conv = partial(BasicConv2d, layers, variant.batch_norm)
        self.aux_logits = aux_logits
        self.smallest = variant.smallest
        self.conv1 = conv(3, 64, 7, stride=2)
        self.maxpool1 = layers.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.Identity() if variant.batch_norm else layers.LocalResponseNorm(**_RESPONSE)
        self.conv2 = conv(64, 64, 1)
        self.conv3 = conv(64, 192, 3)
        self.norm2 = nn.Identity() if variant.batch_norm else layers.LocalResponseNorm(**_RESPONSE)
        self.maxpool2 = layers.MaxPool2d(3, stride=2, ceil_mode=True)

        channels, inputs = 192, {}
        for name, widths in _MODULES.items():
            inputs[name] = channels
            module = Inception(layers, variant, channels, widths, naive)
            self.add_module(f"inception{name}", module)
            channels = module.out_channels
            if name == "3b":
                self.maxpool3 = layers.MaxPool2d(3, stride=2, ceil_mode=True)
            if name == "4e":
                self.maxpool4 = layers.MaxPool2d(2 if variant.batch_norm else 3, stride=2, ceil_mode=True)

        aux = partial(InceptionAux, layers, variant.batch_norm, num_classes=num_classes, dropout=dropout_aux)
        self.aux1 = aux(in_channels=inputs["4b"]) if aux_logits else None
        self.aux2 = aux(in_channels=inputs["4e"]) if aux_logits else None
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout((0.2 if variant.batch_norm else 0.4) if dropout is None else dropout)
        self.fc = nn.Linear(channels, num_classes)
        self._init_weights(variant)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        check_images(self, x, smallest=self.smallest)
        with_aux = self.training and self.aux_logits
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if with_aux else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if with_aux else None
        x = self.maxpool4(self.inception4e(x))
        x = self.avgpool(self.inception5b(self.inception5a(x)))
        logits = self.fc(self.dropout(x.flatten(1)))
        return GoogLeNetOutputs(logits, aux2, aux1) if with_aux else logits

    def _init_weights(self, variant: Variant) -> None:
        """torchvision's normal weights of deviation 0.01; without batch norm that would drown the signal: He's."""
        for module in self.modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            if variant.batch_norm:
                nn.init.trunc_normal_(module.weight, std=0.01, a=-2, b=2)
            else:
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)


_VARIANTS = {
    "googlenet": Variant(True, 3, 15, 13_004_888, 1_498_376_192),
    "googlenet_2014": Variant(False, 5, 31, 13_378_280, 1_582_671_872),
}

for _name, _variant in _VARIANTS.items():
    register(
        ModelInfo(
            name=_name,
            build=partial(GoogLeNet, variant=_variant),
            image_size=224,
            normalization=IMAGENET,
            parameters=_variant.parameters,
            multiply_adds=_variant.multiply_adds,
        )
    )
