"""ZFNet: AlexNet with a finer first layer, found by looking at what its features see."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from torch import Tensor, nn

from fastconv.models.alexnet import HIDDEN, RESPONSE, classifier, init_gaussian
from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

_FINAL_SIZE = 6
_SMALLEST = 47  # the last pool needs three pixels


class ZFNet(nn.Module):
    """ZFNet, [N, 3, H, W] with H, W >= 47 -> logits [N, num_classes]; made for 224x224 images.

    Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013, section 4.1 and figure 3; `widths`
    of layers 3 to 5 are 384, 384, 256, or 512, 1024, 512 as in table 3. Pools round their size up, which
    gives the figure's 55, 13 and 6 pixels. 62,357,608 parameters, 1.17 G multiply-adds at 224x224; the wide one
    107,627,624 and 2.48 G. Receptive field of the last pool 171.
    """

    def __init__(
        self,
        layers: ModuleType,
        widths: tuple[int, int, int] = (384, 384, 256),
        *,
        num_classes: int = 1000,
        dropout: float = 0.5,
        hidden: int = HIDDEN,
    ) -> None:
        super().__init__()
        third, fourth, fifth = widths
        self.features = nn.Sequential(
            layers.Conv2d(3, 96, 7, stride=2, padding=1),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
            layers.LocalResponseNorm(**RESPONSE),
            layers.Conv2d(96, 256, 5, stride=2),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
            layers.LocalResponseNorm(**RESPONSE),
            layers.Conv2d(256, third, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.Conv2d(third, fourth, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.Conv2d(fourth, fifth, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2, ceil_mode=True),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(_FINAL_SIZE)
        self.classifier = classifier(fifth, num_classes, dropout, hidden)
        init_gaussian(self, one_bias=())  # section 3: all biases start at 0

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=_SMALLEST)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


for _name, _widths, _parameters, _multiply_adds in (
    ("zfnet", (384, 384, 256), 62_357_608, 1_168_032_896),
    ("zfnet_wide", (512, 1024, 512), 107_627_624, 2_476_704_896),
):
    register(ModelInfo(_name, partial(ZFNet, widths=_widths), 224, IMAGENET, _parameters, _multiply_adds))
