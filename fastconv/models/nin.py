"""Network in Network: small perceptrons slid over the image, and one average a class instead of linear layers."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import CIFAR, IMAGENET
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register


def _mlpconv(
    layers: ModuleType,
    in_channels: int,
    widths: tuple[int, int, int],
    kernel: int,
    stride: int = 1,
    padding: int = 0,
) -> list[nn.Module]:
    """A convolution and two 1x1 ones, each with a ReLU: a perceptron of two hidden layers a pixel (section 3.1)."""
    first, second, third = widths
    return [
        layers.Conv2d(in_channels, first, kernel, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
        layers.Conv2d(first, second, 1),
        nn.ReLU(inplace=True),
        layers.Conv2d(second, third, 1),
        nn.ReLU(inplace=True),
    ]


class NINCifar(nn.Module):
    """Network in Network for small images, [N, 3, H, W] with H, W >= 4 -> logits [N, num_classes]; made for 32x32.

    Lin, Chen, Yan: Network In Network, 2013, sections 3 and 4.2, with the layer sizes of the authors' release.
    966,986 parameters, 222.5 M multiply-adds at 32x32; receptive field of the last layer 27.
    """

    def __init__(self, layers: ModuleType, *, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_mlpconv(layers, 3, (192, 160, 96), 5, padding=2),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(dropout),
            *_mlpconv(layers, 96, (192, 192, 192), 5, padding=2),
            layers.AvgPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(dropout),
            *_mlpconv(layers, 192, (192, 192, num_classes), 3, padding=1),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        init_weights(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=4)
        return self.avgpool(self.features(x)).flatten(1)


class NIN(nn.Module):
    """Network in Network for photographs, [N, 3, H, W] with H, W >= 39 -> logits [N, num_classes]; made for 224x224.

    Lin, Chen, Yan: Network In Network, 2013; the four blocks the authors released for ImageNet. 7,595,176
    parameters, 1.10 G multiply-adds at 224x224; receptive field of the last layer 195.
    """

    def __init__(self, layers: ModuleType, *, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_mlpconv(layers, 3, (96, 96, 96), 11, stride=4),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
            *_mlpconv(layers, 96, (256, 256, 256), 5, padding=2),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
            *_mlpconv(layers, 256, (384, 384, 384), 3, padding=1),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(dropout),
            *_mlpconv(layers, 384, (1024, 1024, num_classes), 3, padding=1),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(1)
        init_weights(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=39)
        return self.avgpool(self.features(x)).flatten(1)


register(ModelInfo("nin", NIN, 224, IMAGENET, 7_595_176, 1_100_188_800))
register(ModelInfo("nin_cifar", NINCifar, 32, CIFAR, 966_986, 222_486_528, classes=10))
