"""Pictures from a training set to a network's input: what the papers do to an image before it is learned.

Every step is a value (it prints, compares and stands in a recipe) and a function image, size, generator -> image on
float images [C, H, W] of values 0..1. All chance comes from the generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Principal components of ImageNet's colours, values 0..1, as rows, and the deviations along them: the published ones.
_COMPONENTS = (
    (-0.5675, -0.5808, -0.5836),
    (0.7192, -0.0045, -0.6948),
    (0.4009, -0.8140, 0.4203),
)
_DEVIATIONS = (0.2175, 0.0188, 0.0045)

_TRIES = 10  # to find a rectangle inside the image
_CIFAR_SIZE = 32


def uniform(generator: Generator, low: float, high: float) -> float:
    """One number between low and high."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def integer(generator: Generator, below: int) -> int:
    """One of 0 .. below - 1."""
    return int(torch.randint(below, (), generator=generator))


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """[C, H, W] -> [C, height, width], bilinear; pixels are averaged where the image shrinks."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def resize_shorter(image: Tensor, side: int) -> Tensor:
    """The image with its shorter side at `side` pixels."""
    height, width = image.shape[1:]
    scale = side / min(height, width)
    return resize(image, max(side, round(height * scale)), max(side, round(width * scale)))


def central_crop(image: Tensor, size: int) -> Tensor:
    """The size x size square in the middle."""
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def _random_crop(image: Tensor, size: int, generator: Generator) -> Tensor:
    top = integer(generator, image.shape[1] - size + 1)
    left = integer(generator, image.shape[2] - size + 1)
    return image[:, top : top + size, left : left + size]


@dataclass(frozen=True)
class Crop:
    """A random square of an image whose shorter side is `smallest` to `largest` times the network's size."""

    smallest: float = 256 / 224
    largest: float = 256 / 224

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        side = round(size * uniform(generator, self.smallest, self.largest))
        return _random_crop(resize_shorter(image, side), size, generator)

    def __str__(self) -> str:
        sides = f"{self.smallest:.3g}" + (f"-{self.largest:.3g}" if self.largest != self.smallest else "")
        return f"random crops (shorter side {sides} sizes)"


@dataclass(frozen=True)
class AreaCrop:
    """A random rectangle of `least` to 1 of the area and a ratio of sides of 3/4 to 4/3, scaled to the square."""

    least: float = 0.08

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        height, width = image.shape[1:]
        for _ in range(_TRIES):
            area = height * width * uniform(generator, self.least, 1.0)
            ratio = math.exp(uniform(generator, math.log(3 / 4), math.log(4 / 3)))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                top, left = integer(generator, height - h + 1), integer(generator, width - w + 1)
                return resize(image[:, top : top + h, left : left + w], size, size)
        return central_crop(resize_shorter(image, size), size)

    def __str__(self) -> str:
        return f"crops of {self.least:.0%}-100% of the area, sides 3/4-4/3"


@dataclass(frozen=True)
class PaddedCrop:
    """A random square of the image with a black border of `share` of its size."""

    share: float = 4 / _CIFAR_SIZE

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        border = round(size * self.share)
        image = central_crop(resize_shorter(image, size), size)
        return _random_crop(F.pad(image, (border,) * 4), size, generator)

    def __str__(self) -> str:
        return f"random shifts of up to {self.share:.3g} of the size"


@dataclass(frozen=True)
class Flip:
    """Mirrored, one time in two."""

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        return image.flip(2) if uniform(generator, 0, 1) < 1 / 2 else image

    def __str__(self) -> str:
        return "flips"


@dataclass(frozen=True)
class ColourShift:
    """Along the principal components of ImageNet's colours, each by a normal multiple of its deviation."""

    deviation: float = 0.1

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        steps = torch.randn(3, generator=generator) * self.deviation * torch.tensor(_DEVIATIONS)
        if len(image) != 3:
            return image
        return image + (steps @ torch.tensor(_COMPONENTS)).view(3, 1, 1)

    def __str__(self) -> str:
        return f"colour shifts ({self.deviation:g} deviations)"


@dataclass(frozen=True)
class Light:
    """Brightness, contrast and saturation, each by a factor of up to 1 +- `strength`."""

    strength: float = 0.4

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        factors = [uniform(generator, 1 - self.strength, 1 + self.strength) for _ in range(3)]
        gray = image.mean(0, keepdim=True)
        for towards, factor in zip((torch.zeros(()), gray.mean(), gray), factors, strict=True):
            image = towards + (image - towards) * factor
        return image.clamp(0, 1)

    def __str__(self) -> str:
        return f"brightness, contrast, saturation (+-{self.strength:.0%})"


@dataclass(frozen=True)
class Affine:
    """Turned, shifted (a share of the size) and scaled at random, with black where nothing is known."""

    degrees: float
    shift: float
    scale: float

    def __call__(self, image: Tensor, size: int, generator: Generator) -> Tensor:
        angle = math.radians(uniform(generator, -self.degrees, self.degrees))
        zoom = uniform(generator, 1 - self.scale, 1 + self.scale)
        x, y = (2 * uniform(generator, -self.shift, self.shift) for _ in range(2))
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        grid = F.affine_grid(torch.tensor([[[cos, -sin, x], [sin, cos, y]]]), [1, *image.shape], align_corners=False)
        return F.grid_sample(image[None], grid, align_corners=False)[0]

    def __str__(self) -> str:
        return f"turns of {self.degrees:g} degrees, shifts of {self.shift:.0%}, scales of {self.scale:.0%}"


Step = Crop | AreaCrop | PaddedCrop | Flip | ColourShift | Light | Affine


def margin(augmentation: tuple[Step, ...]) -> float:
    """The shorter side of an image at evaluation, in network sizes, of which the central square is taken."""
    return next((step.smallest for step in augmentation if isinstance(step, Crop)), 1.0)


def central(image: Tensor, size: int, margin: float) -> Tensor:
    """Evaluation: float [C, H, W] -> [C, size, size], the middle of the image."""
    return central_crop(resize_shorter(image, round(size * margin)), size)


def augmented(image: Tensor, augmentation: tuple[Step, ...], size: int, generator: Generator) -> Tensor:
    """Training: float [C, H, W] -> [C, size, size] by all steps in their order."""
    for step in augmentation:
        image = step(image, size, generator)
    return central(image, size, 1.0)


def ten_crops(image: Tensor, size: int, margin: float) -> Tensor:
    """[C, H, W] -> [10, C, size, size]: the corners and the middle, and their mirror images (AlexNet, section 4.1)."""
    image = resize_shorter(image, max(size, round(size * max(margin, Crop().smallest))))
    bottom, right = image.shape[1] - size, image.shape[2] - size
    places = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = torch.stack([image[:, top : top + size, left : left + size] for top, left in places])
    return torch.cat([crops, crops.flip(3)])
