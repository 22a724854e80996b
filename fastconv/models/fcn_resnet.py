"""FCN on a dilated ResNet-50, whose maps keep an eighth of the image's sides. State-dict keys are torchvision's."""

from __future__ import annotations

from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.registry import ModelInfo, register
from fastconv.models.resnet import VARIANTS as RESNETS
from fastconv.models.resnet import ResNetMaps, Variant

_CLASSES = 21  # PASCAL VOC's 20 and the background
_DROPOUT = 0.1


def _head(layers: ModuleType, in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    hidden = in_channels // 4
    return nn.Sequential(
        layers.Conv2d(in_channels, hidden, 3, padding=1, bias=False),
        layers.BatchNorm2d(hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        layers.Conv2d(hidden, num_classes, 1),
    )


class FCNResNet(nn.Module):
    """FCN on ResNet, [N, 3, H, W] -> {"out": logits of every pixel, [N, num_classes, H, W], "aux": the same}.

    Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, 2014, as torchvision's
    `fcn_resnet50` builds it: the third and fourth stage of ResNet-50 are dilated instead of strided (Yu, Koltun 2015),
    a head of two convolutions scores the last map, another the one before it ("aux", Zhao et al. 2016, section 3.3;
    none without `aux_loss`), and both are interpolated bilinearly. Parameters / multiply-adds at 520x520: 35.3 M /
    152.7 G. Receptive field of the scores 443, of "aux" 283.
    """

    def __init__(
        self,
        layers: ModuleType,
        *,
        num_classes: int = _CLASSES,
        aux_loss: bool = True,
        dropout: float = _DROPOUT,
        resnet: Variant = RESNETS["resnet50"],
    ) -> None:
        super().__init__()
        self.backbone = ResNetMaps(layers, resnet, replace_stride_with_dilation=(False, True, True))
        width = self.backbone.channels
        aux = _head(layers, width // 2, num_classes, dropout) if aux_loss else None  # its weights are drawn first
        self.classifier = _head(layers, width, num_classes, dropout)
        self.aux_classifier = aux

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_images(self, x)
        *_, third, fourth = self.backbone(x)
        scores = {"out": self.classifier(fourth)}
        if self.aux_classifier is not None:
            scores["aux"] = self.aux_classifier(third)
        size = x.shape[2:]
        return {
            key: F.interpolate(score, size=size, mode="bilinear", align_corners=False) for key, score in scores.items()
        }


register(ModelInfo("fcn_resnet50", FCNResNet, 520, IMAGENET, 35_322_218, 152_716_512_000, classes=_CLASSES, dense=True))
