"""Pictures of shapes on textured ground, drawn when asked for: a data set that needs no download.

A picture is a function of the set's seed and its number alone, so a set of any length costs nothing to keep, and the
same numbers give the same pictures everywhere. Every shape has a class, a box and the pixels it covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fastconv.training.augment import integer, uniform
from fastconv.training.chance import generator_for

SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")

_CONTRAST = 0.35  # least distance between the colours of a shape and its ground
_TEXTURE = 0.12  # deviation of the ground's texture, of the full range
_GRAIN = 0.03  # deviation of the noise of single pixels
_APART = 0.15  # boxes of two shapes share at most this part of the smaller one
_TRIES = 20  # places tried for a shape before it is left out


@dataclass(frozen=True)
class Picture:
    """uint8 `image` [3, H, W]; `boxes` [n, 4] in pixels as left, top, right, bottom, the latter two one past the last;
    `labels` int64 [n]; `mask` int64 [H, W]: 0 the ground, 1 + label a shape."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    mask: Tensor


def draw(
    seed: int, number: int, size: int, count: tuple[int, int] = (1, 1), span: tuple[float, float] = (0.4, 0.8)
) -> Picture:
    """Picture `number` of the set `seed`: from count[0] to count[1] shapes, each `span` of the side large.

    `size` is the side in pixels, at least 8. Shapes overlap a little at most; where no place is left there are fewer.
    """
    if size < 8:
        raise ValueError(f"Pictures of shapes need at least 8 x 8 pixels, but size is {size}.")
    generator = generator_for("shapes", seed, number)
    ground = torch.rand(3, generator=generator)
    image = _texture(ground, size, generator)
    mask = torch.zeros(size, size, dtype=torch.int64)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(count[0] + integer(generator, count[1] - count[0] + 1)):
        label = integer(generator, len(SHAPES))
        for _ in range(_TRIES):
            covered = _cover(SHAPES[label], size, span, generator)
            box = _box(covered)
            if box is not None and all(_shared(box, other) <= _APART for other in boxes):
                image = torch.where(covered, _texture(_other(ground, generator), size, generator), image)
                mask[covered] = 1 + label
                boxes.append(box)
                labels.append(label)
                break
    image = image + _GRAIN * torch.randn(image.shape, generator=generator)
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return Picture(pixels, torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels), mask)


def _texture(colour: Tensor, size: int, generator: Generator) -> Tensor:
    """[3, size, size]: noise of some coarseness around a colour."""
    cells = 2 + integer(generator, 7)
    noise = F.interpolate(torch.randn(1, 1, cells, cells, generator=generator), (size, size), mode="bilinear")[0]
    return colour.view(3, 1, 1) + _TEXTURE * uniform(generator, 0.3, 1) * noise


def _other(ground: Tensor, generator: Generator) -> Tensor:
    """A colour that differs from the ground in at least one channel."""
    while True:
        colour = torch.rand(3, generator=generator)
        if (colour - ground).abs().max() >= _CONTRAST:
            return colour


def _cover(shape: str, size: int, span: tuple[float, float], generator: Generator) -> Tensor:
    """bool [size, size]: the pixels of a shape at a random place and angle, wholly inside the picture."""
    radius = size * uniform(generator, *span) / 2
    angle = math.radians(uniform(generator, -20, 20))
    room = max(size - 2 * radius, 0)
    x0, y0 = (radius + uniform(generator, 0, room) for _ in range(2))
    at = torch.arange(size) + 0.5
    dx, dy = (at.view(1, -1) - x0) / radius, (at.view(-1, 1) - y0) / radius
    x, y = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
    distance = (x.square() + y.square()).sqrt()
    side = 1 / math.sqrt(2)  # of a square or bar inside the circle
    if shape == "circle":
        return distance <= 0.9
    if shape == "square":
        return (x.abs() <= side) & (y.abs() <= side)
    if shape == "triangle":  # upright, its corners on the circle
        return (y <= 0.5) & (y >= math.sqrt(3) * x.abs() - 1)
    if shape == "cross":
        return ((x.abs() <= 0.3) & (y.abs() <= 0.9)) | ((y.abs() <= 0.3) & (x.abs() <= 0.9))
    if shape == "ring":
        return (distance <= 0.95) & (distance >= 0.55)
    return (x.abs() <= 0.95) & (y.abs() <= 0.25)  # bar


def _box(covered: Tensor) -> tuple[int, int, int, int] | None:
    rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The common area, as a part of the smaller box."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return max(width, 0) * max(height, 0) / min(areas)
