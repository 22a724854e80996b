"""Small networks with what the passes look for, in eval mode and with batch norms that do something."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def settle(model: nn.Module) -> nn.Module:
    """Eval mode, with running statistics and affine parameters that are not 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.7, 1.3, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return model.eval()


class Residual(nn.Module):
    """A stem, a block with a projection, a block without, a classifier: a ResNet in little."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.first = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.projection = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16, affine=False), nn.ReLU())
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = self.relu(self.first(x) + self.projection(x))
        x = x + self.second(x)
        return self.head(x)


class Inception(nn.Module):
    """Branches that are concatenated, one of them a bare pool, and a branch that is used twice."""

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(5, 8, 1), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 3, padding=1), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.after = nn.Conv2d(25, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        y = torch.cat([one, self.three(x), self.pool(x)], 1)
        return torch.cat([self.after(y), one], 1)


class Dense(nn.Module):
    """Layers that read all results before them through a batch norm, as in a DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False) for i in range(3))
        self.transition = nn.Conv2d(20, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            features.append(layer(torch.relu(norm(torch.cat(features, 1)))))
        x = torch.relu(self.norms[3](torch.cat(features, 1)))
        return torch.nn.functional.avg_pool2d(self.transition(x), 2, 2)


class SqueezeExcite(nn.Module):
    """An inverted residual with squeeze and excitation, SiLU and a residual: EfficientNet in little."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(6, 24, 1, bias=False), nn.BatchNorm2d(24), nn.SiLU(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 5, padding=2, groups=24, bias=False), nn.BatchNorm2d(24), nn.SiLU(inplace=True)
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 4, 1), nn.SiLU(inplace=True), nn.Conv2d(4, 24, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 6, 1, bias=False), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        return x + self.project(y * self.squeeze(y))


class Upsampled(nn.Module):
    """A fully convolutional network: explicit padding, dilation, transposed convolution, interpolation."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Hardswish(),
        )  # fmt: skip
        self.up = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 4, 2, 1, output_padding=1, groups=2, bias=False),
            nn.BatchNorm2d(6),
            nn.LeakyReLU(0.1),
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.up(self.body(x))
        out = nn.functional.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": out, "coarse": y}


class Pyramid(nn.Module):
    """Coarse maps brought to the size of fine ones, by sizes and by factors, into sums and concatenations."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.up = nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        middle = self.coarse[:2](fine)
        coarse = self.coarse[2](middle)
        middle = middle + nn.functional.interpolate(coarse, size=middle.shape[-2:])
        return self.last(torch.cat([self.up(middle), fine], 1))


class Classic(nn.Module):
    """Linear layers behind a flattened map, as in AlexNet and VGG."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(6 * 6 * 4, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 7)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Indexed(nn.Module):
    """A pool whose indices are used too, which a plan has no place for, and writes that need torch's decompositions."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.conv(x))
        y[:, 0] += 1
        y, index = self.pool(y)
        return self.norm(y), (index % 2).to(y.dtype)


class Attention(nn.Module):
    """A convolution, something no plan knows, and a convolution again."""

    def __init__(self):
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.after = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        tokens = y.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.after(tokens.transpose(1, 2).reshape(y.shape))


class Overwritten(nn.Module):
    """A result that is read by a convolution before a write into it, and by another one after."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        before = self.second(torch.softmax(y, 1)) + y
        y.add_(x[:, :1], alpha=2)
        return before * y + self.second(y)


class Rows(nn.Module):
    """Linear layers over the last of two, three and four axes: there four axes are no maps."""

    def __init__(self):
        super().__init__()
        self.maps, self.rows, self.tokens = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.rows(self.maps(x).permute(0, 2, 3, 1)))
        tokens = torch.relu(self.tokens(y.flatten(1, 2)))
        return tokens, self.tokens(y[:, 0, 0])


# Every network, and the input it is tried with.
ALL = {
    "residual": (Residual, (2, 3, 26, 22)),
    "inception": (Inception, (2, 5, 9, 7)),
    "dense": (Dense, (2, 3, 10, 8)),
    "squeeze_excite": (SqueezeExcite, (2, 6, 9, 11)),
    "upsampled": (Upsampled, (2, 3, 17, 21)),
    "pyramid": (Pyramid, (2, 3, 32, 40)),
    "classic": (Classic, (2, 3, 16, 12)),
    "indexed": (Indexed, (2, 3, 12, 14)),
    "overwritten": (Overwritten, (2, 3, 5, 4)),
    "rows": (Rows, (2, 3, 6, 10)),
    "attention": (Attention, (2, 3, 6, 5)),
}


PLANNED = tuple(name for name in ALL if name not in ("indexed", "overwritten", "rows", "attention"))  # as one plan each


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network by name and an input for it, the same every time."""
    torch.manual_seed(0)
    kind, shape = ALL[name]
    return settle(kind()).to(dtype), torch.randn(shape, dtype=dtype)
