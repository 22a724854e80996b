"""The names of ImageNet's 1000 classes."""

from functools import cache
from importlib.resources import files


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k in the order of a classifier's outputs.

    Source: torchvision 0.28, models/_meta.py (BSD 3-clause licence); data/imagenet_labels.txt has one a line.
    """
    text = files("fastconv.models").joinpath("data/imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
