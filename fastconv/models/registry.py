"""The one list of models: every family registers its rows here, and everything else asks here.

A row names the model, says how to build it and states the facts a reader wants before building it: input
size, parameters, multiply-adds. The tests hold the facts to the built network.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from torch import nn

from fastconv.models.images import Normalization

# Where a network takes its convolution and pooling layers from. Imported only when a model is built.
_LAYER_MODULES = {"fastconv": "fastconv.nn", "torch": "torch.nn"}


@dataclass(frozen=True)
class ModelInfo:
    """One registered model.

    `build(layers, **kwargs)` constructs it with the convolution and pooling classes of the module `layers`.
    `parameters` counts trainable values; `multiply_adds` counts those of all convolutions and linear layers
    for one `image_size` x `image_size` image in eval mode. The image has as many channels as `normalization`.
    The output is [N, classes], or [N, classes, H, W] where the network is `dense`: a class for every pixel (of
    `fcn_resnet50` a dict whose "out" is that). A detector (`boxes`) is a `fastconv.models.detection.Detector`; the
    products of one that searches regions are those for as many regions as it looks at.
    """

    name: str
    build: Callable[..., nn.Module]
    image_size: int
    normalization: Normalization
    parameters: int
    multiply_adds: int
    classes: int = 1000
    dense: bool = False
    boxes: bool = False

    @property
    def channels(self) -> int:
        """Channels of the input: 3, or 1 for gray images."""
        return len(self.normalization.mean)


_MODELS: dict[str, ModelInfo] = {}


def register(info: ModelInfo) -> None:
    """Add one model to the list. A name can be taken only once."""
    if info.name in _MODELS:
        raise ValueError(f"A model named {info.name!r} is already registered; choose another name.")
    _MODELS[info.name] = info


def list_models() -> list[str]:
    """The names of all models, sorted."""
    return sorted(_MODELS)


def model_info(name: str) -> ModelInfo:
    """The facts about the model `name`; a ValueError with the closest names if there is no such model."""
    if isinstance(name, str) and name in _MODELS:
        return _MODELS[name]
    spelled = str(name).lower().replace("-", "_")
    matches = difflib.get_close_matches(spelled, list_models(), n=3)
    hint = f"Did you mean {' or '.join(matches)}?" if matches else f"There are {', '.join(list_models())}."
    raise ValueError(f"The argument name={name!r} is not the name of a model. {hint}")


def create_model(name: str, *, layers: Literal["fastconv", "torch"] = "fastconv", **kwargs) -> nn.Module:
    """Build the model `name` with fresh weights, in training mode.

    `layers` picks the module its convolutions, pools and batch norms come from: "fastconv" or "torch"; with ours,
    sequences run what they can together, as in a swapped model. The other keyword arguments go to the family's class;
    all take `num_classes`, and those that are built for images of one size take `image_size`. ValueError for an unknown
    name or other layers, and where `num_classes` is no positive integer.
    """
    info, classes = model_info(name), kwargs.get("num_classes")
    if classes is not None and (not isinstance(classes, int) or isinstance(classes, bool) or classes < 1):
        raise ValueError(f"The argument num_classes={classes!r} must be a positive integer.")
    model = info.build(layer_module(layers), **kwargs)
    if layers == "fastconv":
        importlib.import_module("fastconv.nn.sequence").join(model)
    return model


def layer_module(layers: str) -> ModuleType:
    """The module `layers` stands for; a ValueError if it is neither "fastconv" nor "torch"."""
    if layers not in _LAYER_MODULES:
        known = " or ".join(map(repr, _LAYER_MODULES))
        raise ValueError(f"The argument layers={layers!r} must be {known}.")
    return importlib.import_module(_LAYER_MODULES[layers])
