"""A small network of every class in fastconv.models, for what must hold whatever the width and depth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fastconv.models.alexnet import AlexNet, AlexNet2012
from fastconv.models.deconvnet import DeconvNet
from fastconv.models.densenet import DenseNet
from fastconv.models.densenet import Variant as Dense
from fastconv.models.efficientnet import EfficientNet
from fastconv.models.efficientnet import Variant as Efficient
from fastconv.models.efficientnet_lite import EfficientNetLite
from fastconv.models.efficientnet_lite import Variant as Lite
from fastconv.models.fcn import FCN
from fastconv.models.fcn import VARIANTS as UPSAMPLED
from fastconv.models.fcn_resnet import FCNResNet
from fastconv.models.googlenet import GoogLeNet
from fastconv.models.googlenet import Variant as Google
from fastconv.models.lenet import MLP, LeNet5, LeNet5ReLU
from fastconv.models.mobilenet_v1 import MobileNetV1
from fastconv.models.mobilenet_v2 import MobileNetV2
from fastconv.models.nin import NIN, NINCifar
from fastconv.models.registry import layer_module
from fastconv.models.resnet import BasicBlock, Bottleneck, ResNet
from fastconv.models.resnet import Variant as Residual
from fastconv.models.resnet_cifar import ResNetCifar
from fastconv.models.resnet_cifar import Variant as Small
from fastconv.models.squeezenet import SqueezeNet
from fastconv.models.squeezenet import Variant as Squeezed
from fastconv.models.vgg import VGG
from fastconv.models.vgg import Variant as Stacked
from fastconv.models.zfnet import ZFNet

CLASSES = 5
_UNCOUNTED = (0, 0)  # parameters and multiply-adds, which nobody asks of these
_NARROW = (4, 4, 8, 8, 8)
_SHALLOW = (1, 1, 1, 1, 1)


@dataclass(frozen=True)
class Thin:
    """How to build one, and two image sides it takes: with two networks where linear layers fix the side."""

    build: Callable[..., nn.Module]
    sizes: tuple[int, ...]
    channels: int = 3
    dense: bool = False
    fixed: bool = False

    def model(self, layers: str = "fastconv", seed: int = 0, size: int | None = None) -> nn.Module:
        """A fresh one of `CLASSES` classes for images of `size`, in training mode."""
        torch.manual_seed(seed)
        sides = {"image_size": size or self.sizes[0]} if self.fixed else {}
        return self.build(layer_module(layers), num_classes=CLASSES, **sides)

    def images(self, size: int | None = None, count: int = 4) -> Tensor:
        """Random images, [count, channels, size, size]."""
        side = self.sizes[0] if size is None else size
        return torch.randn(count, self.channels, side, side, generator=torch.Generator().manual_seed(1))

    def output_shape(self, images: Tensor) -> tuple[int, ...]:
        """What comes out for `images`."""
        return (len(images), CLASSES, *(images.shape[2:] if self.dense else ()))


def _resnet(block: type[nn.Module], shortcut: str) -> Thin:
    return Thin(partial(ResNet, variant=Residual(block, (1, 1, 1, 1), *_UNCOUNTED, shortcut)), (32, 48))


def _fcn(name: str) -> Thin:
    backbone = Stacked(_SHALLOW, False, *_UNCOUNTED, widths=_NARROW)
    return Thin(partial(FCN, variant=UPSAMPLED[name], hidden=16, backbone=backbone), (33, 64), dense=True)


THIN = {
    "alexnet": Thin(partial(AlexNet, hidden=16), (63, 80)),
    "alexnet_2012": Thin(partial(AlexNet2012, hidden=16), (67, 83)),
    "deconvnet": Thin(partial(DeconvNet, hidden=16, widths=_NARROW), (224, 256), dense=True),
    "densenet": Thin(partial(DenseNet, variant=Dense(8, (2, 2, 2, 2), 16, *_UNCOUNTED)), (32, 64)),
    "densenet_cifar": Thin(
        partial(DenseNet, variant=Dense(8, (2, 2, 2), 16, *_UNCOUNTED, bottleneck=False, cifar=True)), (16, 24)
    ),
    "efficientnet": Thin(partial(EfficientNet, variant=Efficient(0.25, 0.5, 64, 0.2, *_UNCOUNTED)), (32, 48)),
    "efficientnet_lite": Thin(partial(EfficientNetLite, variant=Lite(0.25, 0.5, 64, 0.2, *_UNCOUNTED)), (64, 48)),
    "fcn16s": _fcn("fcn16s"),
    "fcn32s": _fcn("fcn32s"),
    "fcn8s": _fcn("fcn8s"),
    "fcn_resnet": Thin(
        partial(FCNResNet, resnet=Residual(Bottleneck, (1, 1, 2, 2), *_UNCOUNTED)), (32, 48), dense=True
    ),
    "googlenet": Thin(partial(GoogLeNet, variant=Google(True, 3, 15, *_UNCOUNTED)), (32, 48)),
    "googlenet_2014": Thin(partial(GoogLeNet, variant=Google(False, 5, 31, *_UNCOUNTED)), (32, 48)),
    "lenet5": Thin(LeNet5, (32, 45), channels=1, fixed=True),
    "lenet5_relu": Thin(LeNet5ReLU, (32, 21), channels=1, fixed=True),
    "lenet5_softmax": Thin(partial(LeNet5, head="softmax"), (32, 45), channels=1, fixed=True),
    "mlp": Thin(MLP, (28, 20), channels=1, fixed=True),
    "mobilenet_v1": Thin(partial(MobileNetV1, width=0.25), (32, 48)),
    "mobilenet_v2": Thin(MobileNetV2, (32, 48)),
    "nin": Thin(NIN, (39, 64)),
    "nin_cifar": Thin(NINCifar, (16, 24)),
    "plain": _resnet(BasicBlock, "none"),
    "plain_bottleneck": _resnet(Bottleneck, "none"),
    "plain_cifar": Thin(partial(ResNetCifar, variant=Small(8, "none", *_UNCOUNTED)), (16, 24)),
    "resnet": _resnet(BasicBlock, "projection"),
    "resnet_all_projections": _resnet(BasicBlock, "all_projections"),
    "resnet_bottleneck": _resnet(Bottleneck, "projection"),
    "resnet_zero_pad": _resnet(Bottleneck, "zero_pad"),
    "resnet_cifar": Thin(partial(ResNetCifar, variant=Small(8, "zero_pad", *_UNCOUNTED)), (16, 24)),
    "squeezenet": Thin(
        partial(SqueezeNet, variant=Squeezed(16, 3, ("pool", 4, "pool", 8, 8), 9, *_UNCOUNTED)), (32, 48)
    ),
    "vgg": Thin(partial(VGG, variant=Stacked(_SHALLOW, False, *_UNCOUNTED, widths=_NARROW), hidden=16), (32, 64)),
    "vgg_bn": Thin(partial(VGG, variant=Stacked(_SHALLOW, True, *_UNCOUNTED, widths=_NARROW), hidden=16), (32, 64)),
    "zfnet": Thin(partial(ZFNet, widths=(24, 32, 16), hidden=16), (47, 64)),
}


def without_chance(model: nn.Module) -> nn.Module:
    """The model with nothing dropped in training."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for rate in ("drop_connect", "rate"):  # of whole branches
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def logits(output: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> Tensor:
    """The logits themselves where a network returns those of auxiliary classifiers beside them."""
    if isinstance(output, dict):
        return output["out"]
    return output if isinstance(output, Tensor) else output[0]
