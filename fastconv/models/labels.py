"""The names of ImageNet's 1000 classes and of COCO's."""

from functools import cache
from importlib.resources import files


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in the order of a classifier's outputs.

    Source: torchvision 0.28, models/_meta.py (BSD 3-clause licence); data/imagenet_labels.txt has one a line.
    """
    return _lines("imagenet_labels.txt")


@cache
def coco_labels() -> tuple[str, ...]:
    """The class names of COCO's numbers 1 to 90, "N/A" where a number has none: a detector's classes 0 to 89.

    Source: torchvision 0.28, models/_meta.py (BSD 3-clause licence); data/coco_labels.txt has one a line.
    """
    return _lines("coco_labels.txt")


def _lines(name: str) -> tuple[str, ...]:
    return tuple(files("fastconv.models").joinpath("data", name).read_text(encoding="utf-8").splitlines())
