"""DeconvNet: VGG-16 and its mirror image, which puts every value back where its pool had found it."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from fastconv.models.checks import check_images
from fastconv.models.images import IMAGENET
from fastconv.models.initialize import init_weights
from fastconv.models.registry import ModelInfo, register

_CLASSES = 21  # PASCAL VOC's 20 and the background
_HIDDEN = 4096
_WINDOW = 7  # the innermost layers see a 7x7 map
_STRIDE = 32  # of the five pools together

_WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = (2, 2, 3, 3, 3)  # convolutions per stage, of VGG-16


def _conv(layers: ModuleType, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    padding = kernel // 2 if kernel < _WINDOW else 0  # the 7x7 layer takes the whole map to one pixel
    conv = layers.Conv2d(in_channels, out_channels, kernel, padding=padding)
    return nn.Sequential(conv, layers.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


def _deconv(layers: ModuleType, in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    padding = kernel // 2 if kernel < _WINDOW else 0
    deconv = layers.ConvTranspose2d(in_channels, out_channels, kernel, padding=padding)
    return nn.Sequential(deconv, layers.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class DeconvNet(nn.Module):
    """DeconvNet, [N, 3, H, W] -> logits of every pixel, [N, num_classes, H, W]; made for 224x224 images.

    Noh, Hong, Han: Learning Deconvolution Network for Semantic Segmentation, 2015, section 3, figure 2, table of the
    supplement: VGG-16's convolutions and its first two linear layers as convolutions, then the same backwards with
    transposed convolutions; max unpooling with the pools' own indices; batch norm behind every layer. H and W are
    multiples of 32, at least 224. 251.8 M parameters, 32.7 G multiply-adds at 224x224; receptive field of the
    innermost layer 404.
    """

    def __init__(
        self,
        layers: ModuleType,
        *,
        num_classes: int = _CLASSES,
        hidden: int = _HIDDEN,
        widths: tuple[int, int, int, int, int] = _WIDTHS,
    ) -> None:
        super().__init__()
        self.encoder, self.pools = nn.ModuleList(), nn.ModuleList()
        channels = 3
        for width, depth in zip(widths, _DEPTHS, strict=True):
            convs = [_conv(layers, channels if index == 0 else width, width) for index in range(depth)]
            self.encoder.append(nn.Sequential(*convs))
            self.pools.append(layers.MaxPool2d(2, stride=2, return_indices=True))
            channels = width
        self.inner = nn.Sequential(
            _conv(layers, channels, hidden, _WINDOW),
            _conv(layers, hidden, hidden, 1),
            _deconv(layers, hidden, channels, _WINDOW),
        )
        self.unpools, self.decoder = nn.ModuleList(), nn.ModuleList()
        for stage in reversed(range(len(widths))):
            width, narrower = widths[stage], widths[max(stage - 1, 0)]
            outputs = [width] * (_DEPTHS[stage] - 1) + [narrower]  # the last layer of a stage narrows
            self.unpools.append(layers.MaxUnpool2d(2, stride=2))
            self.decoder.append(nn.Sequential(*(_deconv(layers, width, output) for output in outputs)))
        self.score = layers.Conv2d(widths[0], num_classes, 1)
        init_weights(self, linear_std=None)

    def forward(self, x: Tensor) -> Tensor:
        check_images(self, x, smallest=_WINDOW * _STRIDE, multiple=_STRIDE)
        switches = []
        for convs, pool in zip(self.encoder, self.pools, strict=True):
            x, indices = pool(convs(x))
            switches.append(indices)
        x = self.inner(x)
        for unpool, deconvs in zip(self.unpools, self.decoder, strict=True):
            x = deconvs(unpool(x, switches.pop()))
        return self.score(x)


register(
    ModelInfo(
        "deconvnet", DeconvNet, _WINDOW * _STRIDE, IMAGENET, 251_805_653, 32_745_979_904, classes=_CLASSES, dense=True
    )
)
