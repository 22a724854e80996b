"""LeNet-5 as it was published and the form taught today, and a multilayer perceptron to compare them with."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn

from fastconv.models.checks import check_image_size, check_images
from fastconv.models.images import DIGITS
from fastconv.models.registry import ModelInfo, register

_IMAGE_SIZE = 32  # of LeNet: digits of 28 pixels with a border of 2; the smallest of which C5 has an output
_SMALLEST = 16  # of which the last pool has an output
_DIGIT_SIZE = 28
_DIGITS = 10
_FEATURES = 84  # outputs of F6: a picture of 7 x 12 pixels

# Which of the 6 maps of S2 each of the 16 maps of C3 sees: table I, its columns grouped by their length.
_C3_TABLE = (
    ((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    (
        *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
        *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    ),
    ((0, 1, 2, 3, 4, 5),),
)

# The centers of the RBF units: every digit as 12 rows of 7 pixels, a byte a row. Drawn in the manner of figure 3.
_CODES = (
    "00 1c 36 63 63 63 63 63 63 36 1c 00",
    "00 0c 1c 3c 0c 0c 0c 0c 0c 0c 3f 00",
    "00 3e 63 63 03 06 0c 18 30 60 7f 00",
    "00 3e 63 03 03 0e 03 03 03 63 3e 00",
    "00 06 0e 1e 36 66 66 7f 06 06 06 00",
    "00 7f 60 60 7c 66 03 03 03 66 3c 00",
    "00 1e 30 60 60 7c 66 63 63 33 1e 00",
    "00 7f 63 03 06 06 0c 0c 18 18 18 00",
    "00 3e 63 63 63 3e 63 63 63 63 3e 00",
    "00 3c 66 63 63 33 1f 03 03 06 3c 00",
)
_CODE_COLUMNS = 7


class ScaledTanh(nn.Module):
    """1.7159 tanh(2x/3), elementwise: the squashing function of appendix A, for which f(1) = 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """[N, C, H, W] -> [N, C, H/2, W/2]: sums of 2x2 pixels, times a trained factor, plus a trained bias, a channel."""

    def __init__(self, layers: ModuleType, channels: int) -> None:
        super().__init__()
        self.sum = layers.AvgPool2d(2, divisor_override=1)
        self.weight = nn.Parameter(torch.empty(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        nn.init.uniform_(self.weight, -2.4 / 4, 2.4 / 4)  # four inputs; the rule of _init_by_fan_in

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x) * self.weight + self.bias


class PartialConv(nn.Module):
    """C3: [N, 6, H, W] -> [N, 16, H-4, W-4], 5x5 filters that see the maps of the connection table only.

    Maps with equally many inputs are one grouped convolution over the maps they see.
    """

    def __init__(self, layers: ModuleType) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for index, columns in enumerate(_C3_TABLE):
            count, seen = len(columns), len(columns[0])
            self.convs.append(layers.Conv2d(count * seen, count, 5, groups=count))
            inputs = torch.tensor([channel for column in columns for channel in column])
            self.register_buffer(f"inputs{index}", inputs, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [conv(x[:, getattr(self, f"inputs{index}")]) for index, conv in enumerate(self.convs)]
        return torch.cat(parts, dim=1)


class RadialBasis(nn.Module):
    """[N, 84] -> logits [N, num_classes]: minus the squared distance to the fixed picture of each class.

    The paper's outputs are the distances, penalties; their negatives are the logits of its loss (equation 9).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes > _DIGITS:
            raise ValueError(
                f"The RBF head has {_DIGITS} pictures, but num_classes is {num_classes}; head='softmax' takes any."
            )
        rows = torch.tensor([list(bytes.fromhex(code)) for code in _CODES[:num_classes]])
        bits = rows.unsqueeze(-1) >> torch.arange(_CODE_COLUMNS - 1, -1, -1) & 1
        self.register_buffer("centers", bits.flatten(1) * 2.0 - 1)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.unsqueeze(1) - self.centers).square().sum(-1)


class LeNet5(nn.Module):
    """LeNet-5 of 1998, [N, 1, image_size, image_size] -> logits [N, num_classes]; 32 in the paper.

    LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998, section II.B,
    figure 2, table I. 60,000 trainable parameters and 340,908 connections, of which 325,680 are the multiply-adds
    of convolutions and F6; receptive field of C5 32. `head` is "rbf" or "softmax" (850 parameters more).

    With a larger `image_size` and all else kept, the maps of C5 are larger than 1x1, as section II.B says: its filters
    stay 5x5. F6 is connected to all of C5 and has 120 * side^2 inputs, side = (image_size - 12) // 4 - 4; its outputs
    and the RBF units stay. ValueError for an `image_size` below 32, which leaves C5 no output, for another `head`, and
    for more than ten classes with RBF units.
    """

    def __init__(
        self,
        layers: ModuleType,
        *,
        num_classes: int = _DIGITS,
        head: Literal["rbf", "softmax"] = "rbf",
        image_size: int = _IMAGE_SIZE,
    ) -> None:
        super().__init__()
        if head not in ("rbf", "softmax"):
            raise ValueError(f"The argument head={head!r} must be 'rbf' or 'softmax'.")
        self.image_size = check_image_size(self, image_size, _IMAGE_SIZE)
        self.c1 = layers.Conv2d(1, 6, 5)
        self.s2 = Subsampling(layers, 6)
        self.c3 = PartialConv(layers)
        self.s4 = Subsampling(layers, 16)
        self.c5 = layers.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120 * (_pooled(image_size) - 4) ** 2, _FEATURES)
        self.output = RadialBasis(num_classes) if head == "rbf" else nn.Linear(_FEATURES, num_classes)
        self.squash = ScaledTanh()
        _init_by_fan_in(self)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, channels=1, exactly=self.image_size)
        x = self.squash(self.s2(self.squash(self.c1(x))))
        x = self.squash(self.s4(self.squash(self.c3(x))))
        x = self.squash(self.c5(x)).flatten(1)
        return self.output(self.squash(self.f6(x)))


class LeNet5ReLU(nn.Module):
    """LeNet-5 as it is taught today, [N, 1, image_size, image_size] -> logits [N, num_classes]; 32 by default.

    The layers of the network of 1998 with every map connected, ReLU, max pools and a linear output: 61,706
    parameters, 416,520 multiply-adds; receptive field of the last pool 16. With another `image_size` the first linear
    layer has 16 * side^2 inputs, side = (image_size - 12) // 4. ValueError below 16, where the last pool has no output.
    """

    def __init__(self, layers: ModuleType, *, num_classes: int = _DIGITS, image_size: int = _IMAGE_SIZE) -> None:
        super().__init__()
        self.image_size = check_image_size(self, image_size, _SMALLEST)
        self.features = nn.Sequential(
            layers.Conv2d(1, 6, 5),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(2),
            layers.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * _pooled(image_size) ** 2, 120),
            nn.ReLU(inplace=True),
            nn.Linear(120, _FEATURES),
            nn.ReLU(inplace=True),
            nn.Linear(_FEATURES, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, channels=1, exactly=self.image_size)
        return self.classifier(self.features(x).flatten(1))


class MLP(nn.Module):
    """A perceptron of two hidden layers, [N, 1, image_size, image_size] -> logits [N, num_classes]; 28 by default.

    LeCun et al. 1998, section III.C.4: 28x28-300-100-10, here with ReLU. 266,610 parameters, 266,200
    multiply-adds: four times the parameters of LeNet-5 and fewer products, since no weight is used twice.
    Receptive field of every unit: the whole image. With another `image_size` the first layer has image_size^2 inputs.
    ValueError below 1.
    """

    def __init__(self, layers: ModuleType, *, num_classes: int = _DIGITS, image_size: int = _DIGIT_SIZE) -> None:
        super().__init__()
        self.image_size = check_image_size(self, image_size, 1)
        self.classifier = nn.Sequential(
            nn.Linear(image_size**2, 300),
            nn.ReLU(inplace=True),
            nn.Linear(300, 100),
            nn.ReLU(inplace=True),
            nn.Linear(100, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, channels=1, exactly=self.image_size)
        return self.classifier(x.flatten(1))


def _pooled(image_size: int) -> int:
    """The side of the maps behind two 5x5 convolutions, each with a pool of 2x2 behind it."""
    return ((image_size - 4) // 2 - 4) // 2


def _init_by_fan_in(model: nn.Module) -> None:
    """Weights uniform within 2.4 / fan_in, as in appendix A, so that sums stay where the tanh is steep; no bias."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 2.4 / math.prod(module.weight.shape[1:])
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


for _name, _build, _size, _parameters, _multiply_adds in (
    ("lenet5", LeNet5, _IMAGE_SIZE, 60_000, 325_680),
    ("lenet5_relu", LeNet5ReLU, _IMAGE_SIZE, 61_706, 416_520),
    ("mlp", MLP, _DIGIT_SIZE, 266_610, 266_200),
):
    register(ModelInfo(_name, _build, _size, DIGITS, _parameters, _multiply_adds, classes=_DIGITS))
