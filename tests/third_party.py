"""The packages the tests compare with. They are part of the test environment: a missing one is an error.

Each is imported by a function, because importing them takes seconds and torchvision needs help first.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch

# On import torchvision registers shape functions for these operators. It fails if its compiled library, which
# exists for some builds of PyTorch only, has not declared them. Nothing in the tests calls them.
_TORCHVISION_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def _declare_torchvision_operators() -> torch.library.Library:
    """Declare the operators; they exist as long as the returned library does, and the cache keeps it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _TORCHVISION_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + _SCHEMA)
    return library


def torchvision() -> ModuleType:
    """torchvision, which imports also where it was compiled for another build of PyTorch."""
    _declare_torchvision_operators()
    import torchvision

    return torchvision


def timm() -> ModuleType:
    """timm, which imports torchvision."""
    torchvision()
    import timm

    return timm


def efficientnet_lite() -> ModuleType:
    """efficientnet_lite_pytorch, whose names our EfficientNet-Lite's state dict keeps."""
    import efficientnet_lite_pytorch

    return efficientnet_lite_pytorch
