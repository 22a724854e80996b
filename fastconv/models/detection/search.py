"""Selective search: boxes around what might be a thing, from colours, textures and sizes alone.

The segments are scikit-image's (Felzenszwalb, Huttenlocher: Efficient Graph-Based Image Segmentation, 2004), the
grouping is here: neighbours that are most alike become one, until all is one, and every group has a box.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastconv.models.detection.matching import with_images
from fastconv.models.images import require
from fastconv.models.tracing import whole

if TYPE_CHECKING:
    import numpy

_SCALES = (50, 150)  # of the segmentation: how much segments must differ from each other
_SMOOTHING, _LEAST_SEGMENT = 0.8, 20  # deviation of the blur, pixels
_BINS = 25  # of a colour's histogram
_DIRECTIONS = 8  # of a gradient
_LEAST_SIDE = 6  # pixels of a box


class Group:
    """A connected part of an image: its pixels' number, box, and histograms of colours and directions."""

    def __init__(self, size: float, box: tuple[int, int, int, int], colours, directions) -> None:
        self.size, self.box, self.colours, self.directions = size, box, colours, directions

    def merged(self, other: Group) -> Group:
        """Both as one; histograms are means over their pixels."""
        size = self.size + other.size
        own, its = self.size / size, other.size / size
        left, top, right, bottom = zip(self.box, other.box, strict=True)
        box = min(left), min(top), max(right), max(bottom)
        colours = own * self.colours + its * other.colours
        return Group(size, box, colours, own * self.directions + its * other.directions)

    def alike(self, other: Group, pixels: int) -> float:
        """Uijlings et al. 2013, section 3.2: shared colours and directions, and how small and how well they fit."""
        left, top, right, bottom = self.merged_box(other)
        around = (right - left) * (bottom - top)
        shared = sum(min_sum(a, b) for a, b in ((self.colours, other.colours), (self.directions, other.directions)))
        both = self.size + other.size
        return shared + (1 - both / pixels) + (1 - (around - both) / pixels)

    def merged_box(self, other: Group) -> tuple[int, int, int, int]:
        """The smallest box around both."""
        (a, b, c, d), (e, f, g, h) = self.box, other.box
        return min(a, e), min(b, f), max(c, g), max(d, h)


def min_sum(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """What two histograms share."""
    return float((a + b - abs(a - b)).sum()) / 2


def selective_search(image: Tensor, most: int) -> Tensor:
    """Boxes [n, 4] of an image [3, H, W] of any range, large groups first, at most `most`; the whole image is one.

    Uijlings, van de Sande, Gevers, Smeulders: Selective Search for Object Recognition, 2013, in one colour space and
    two scales. ImportError, with the package's name, where scikit-image is not installed.
    """
    segmentation, numpy = require("skimage.segmentation", "scikit-image"), require("numpy", "numpy")
    low, high = image.min(), image.max()
    pixels = ((image - low) / (high - low).clamp(min=1e-6)).permute(1, 2, 0).float().cpu().numpy()
    height, width = pixels.shape[:2]
    boxes = {(0, 0, width, height): None}  # in order, without repetition
    for scale in _SCALES:
        labels = segmentation.felzenszwalb(pixels, scale, _SMOOTHING, _LEAST_SEGMENT)
        for group in reversed(_grouped(_segments(pixels, labels, numpy), _neighbours(labels, numpy), labels.size)):
            left, top, right, bottom = group.box
            if min(right - left, bottom - top) >= _LEAST_SIDE:
                boxes[group.box] = None
    return torch.tensor(list(boxes)[:most], dtype=torch.float32)


@whole
def searched(images: Tensor, most: int) -> Tensor:
    """Regions [R, 5] of images [N, 3, H, W]; on the meta device, where nothing is known, as many as there may be."""
    if images.is_meta:
        return images.new_empty(len(images) * most, 1 + 4)
    return _search(images.detach(), most)


@torch.library.custom_op("fastconv::selective_search", mutates_args=())
def _search(images: Tensor, most: int) -> Tensor:
    return with_images([selective_search(image, most).to(images.device) for image in images])


@_search.register_fake
def _(images, most):
    return images.new_empty(torch.library.get_ctx().new_dynamic_size(), 1 + 4, dtype=torch.float32)


def _segments(pixels, labels, numpy) -> dict[int, Group]:
    """Every segment as a group of its own."""
    count = int(labels.max()) + 1
    flat = labels.ravel()
    sizes = numpy.bincount(flat, minlength=count).astype(float)
    bins = numpy.minimum((pixels * _BINS).astype(int), _BINS - 1).reshape(-1, 3)
    colours = [_histogram(flat, bins[:, channel], count, _BINS, numpy) for channel in range(3)]
    dy, dx = numpy.gradient(pixels.mean(2))
    angle = ((numpy.arctan2(dy, dx) + numpy.pi) / (2 * numpy.pi) * _DIRECTIONS).astype(int) % _DIRECTIONS
    directions = _histogram(flat, angle.ravel(), count, _DIRECTIONS, numpy, numpy.hypot(dy, dx).ravel() + 1e-6)
    y, x = numpy.indices(labels.shape)
    groups = {}
    for number in range(count):
        rows, columns = y[labels == number], x[labels == number]
        box = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
        colour = numpy.concatenate([part[number] for part in colours]) / 3
        groups[number] = Group(sizes[number], box, colour, directions[number])
    return groups


def _histogram(flat, values, count: int, bins: int, numpy, weights=None):
    """[count, bins], every row a share."""
    found = numpy.bincount(flat * bins + values, weights, minlength=count * bins).reshape(count, bins)
    return found / found.sum(1, keepdims=True)


def _neighbours(labels, numpy) -> set[tuple[int, int]]:
    """Pairs of segments that touch, the smaller number first."""
    sides = [(labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])]
    count = int(labels.max()) + 1
    codes = [numpy.minimum(a, b)[a != b] * count + numpy.maximum(a, b)[a != b] for a, b in sides]
    return {divmod(code, count) for code in numpy.unique(numpy.concatenate(codes)).tolist()}


def _grouped(groups: dict[int, Group], touching: set[tuple[int, int]], pixels: int) -> list[Group]:
    """The segments and all groups of them, in the order in which they came to be."""
    alike = {pair: groups[pair[0]].alike(groups[pair[1]], pixels) for pair in touching}
    while alike:
        first, second = max(alike, key=alike.get)
        number = len(groups)
        groups[number] = groups[first].merged(groups[second])
        old = [pair for pair in alike if first in pair or second in pair]
        others = {one for pair in old for one in pair} - {first, second}
        for pair in old:
            del alike[pair]
        for other in others:
            alike[other, number] = groups[other].alike(groups[number], pixels)
    return list(groups.values())
