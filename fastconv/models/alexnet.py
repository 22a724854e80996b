"""AlexNet: the network of 2012 on two GPUs, and the single tower of 2014 with torchvision's state-dict keys."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register

_FINAL_SIZE = 6  # the classifier sees a 6x6 map
HIDDEN = 4096
_SMALLEST = 63  # the last pool needs three pixels
_SMALLEST_2012 = 67

# Local response normalisation, section 3.3. The paper sums the squares of n neighbours; torch averages them.
_NEIGHBOURS = 5
RESPONSE = {"size": _NEIGHBOURS, "alpha": 1e-4 * _NEIGHBOURS, "beta": 0.75, "k": 2.0}


class AlexNet2012(nn.Module):
    """AlexNet as published, [N, 3, H, W] with H, W >= 67 -> logits [N, num_classes]; made for 227x227 images.

    Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, 2012, sections
    3 and 5, figure 2. The paper says 224, which does not give its 55x55 maps without padding; 227 does.
    Its two GPUs are two groups of layers 2, 4 and 5. 60,965,224 parameters, 724,406,816 multiply-adds;
    receptive field of the last pool 195. Other sizes are pooled to the classifier's 6x6 map.
    """

    def __init__(
        self, layers: ModuleType, *, num_classes: int = 1000, dropout: float = 0.5, hidden: int = HIDDEN
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            layers.Conv2d(3, 96, 11, stride=4),
            nn.ReLU(inplace=True),
            layers.LocalResponseNorm(**RESPONSE),
            layers.MaxPool2d(3, stride=2),
            layers.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            layers.LocalResponseNorm(**RESPONSE),
            layers.MaxPool2d(3, stride=2),
            layers.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            layers.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(_FINAL_SIZE)
        self.classifier = classifier(256, num_classes, dropout, hidden)
        init_gaussian(self, one_bias=("features.4", "features.10", "features.12", "classifier.1", "classifier.4"))

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=_SMALLEST_2012)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class AlexNet(nn.Module):
    """AlexNet in one tower, [N, 3, H, W] with H, W >= 63 -> logits [N, num_classes]; made for 224x224 images.

    Krizhevsky: One weird trick for parallelizing convolutional neural networks, 2014, section 5, as torchvision
    builds it (256 filters in layer 4, not 384). 61,100,840 parameters, 714,188,480 multiply-adds; receptive field of
    the last pool 195.
    """

    def __init__(
        self, layers: ModuleType, *, num_classes: int = 1000, dropout: float = 0.5, hidden: int = HIDDEN
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            layers.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2),
            layers.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2),
            layers.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            layers.MaxPool2d(3, stride=2),
        )
        self.avgpool = layers.AdaptiveAvgPool2d(_FINAL_SIZE)
        self.classifier = classifier(256, num_classes, dropout, hidden)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=_SMALLEST)
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def classifier(channels: int, num_classes: int, dropout: float, hidden: int) -> nn.Sequential:
    """Two hidden layers, each behind a dropout, and the output: [N, 36 * channels] -> [N, num_classes]."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(channels * _FINAL_SIZE**2, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )


def init_gaussian(model: nn.Module, one_bias: tuple[str, ...]) -> None:
    """Section 5: weights of standard deviation 0.01; biases 1 in the layers of `one_bias`, where ReLUs start with
    positive inputs, and 0 elsewhere."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.constant_(module.bias, 1.0 if name in one_bias else 0.0)


for _name, _build, _size, _parameters, _multiply_adds in (
    ("alexnet", AlexNet, 224, 61_100_840, 714_188_480),
    ("alexnet_2012", AlexNet2012, 227, 60_965_224, 724_406_816),
):
    register(ModelInfo(_name, _build, _size, IMAGENET, _parameters, _multiply_adds))
