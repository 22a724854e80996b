"""The published networks our models must equal, and what the comparisons share."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest
import torch
from torch import Tensor, nn

from fastconv.models import create_model, list_models, model_info
from tests.third_party import efficientnet_lite, timm, torchvision

# The namespaces every model test runs with.
LAYERS = ("torch", "fastconv")

DETECTORS = tuple(name for name in list_models() if model_info(name).boxes)
NAMES = tuple(name for name in list_models() if name not in DETECTORS)

# What neither torchvision nor another installed package has; papers and arithmetic hold these.
UNPUBLISHED = (
    "alexnet_2012",
    "deconvnet",
    "densenet100_cifar",
    "densenet40_cifar",
    "fcn16s",
    "fcn32s",
    "fcn8s",
    "googlenet_2014",
    "lenet5",
    "lenet5_relu",
    "mlp",
    "mobilenet_v1_050",
    "nin",
    "nin_cifar",
    "plain18",
    "plain34",
    *(f"{kind}{depth}_cifar" for kind in ("plain", "resnet") for depth in (20, 32, 44, 56, 110)),
    "zfnet",
    "zfnet_wide",
)
PUBLISHED = tuple(name for name in NAMES if name not in UNPUBLISHED)


def quick(names: Iterable[str], chosen: Collection[str]) -> list[object]:
    """Parameters of a test that always runs for the `chosen` of `names`, and for the others in the full count."""
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.full) for name in names]


# Largest difference allowed, relative to the largest value. The sums differ only in order.
TOLERANCE = 1e-5

# Units of the hidden layers of classifiers whose published width would take most of a comparison's time.
_THIN = {"alexnet": 64, "vgg11": 64, "vgg11_bn": 64}


def reference(name: str, **options) -> nn.Module:
    """The published package's own network for the model `name`, untrained."""
    if name.startswith("efficientnet_lite"):
        return efficientnet_lite().EfficientNet.from_name(name.replace("_", "-"), **options)
    if name == "mobilenet_v1":
        return timm().create_model("mobilenetv1_100", **options)
    if name == "fcn_resnet50":
        return torchvision().models.get_model(name, weights=None, weights_backbone=None, aux_loss=True, **options)
    if name == "googlenet":  # its own initial weights take seconds
        options = {"init_weights": False, **options}
    return getattr(torchvision().models, name)(**options)


def randomized_pair(name: str, layers: str, **options) -> tuple[nn.Module, nn.Module]:
    """(ours, theirs) with the same random weights and non-trivial batch-norm statistics.

    Both are built without storage first, because drawing weights only to overwrite them takes seconds.
    """
    thin = {"hidden": _THIN[name]} if name in _THIN else {}
    with torch.device("meta"):
        ours, theirs = create_model(name, layers=layers, **thin, **options), reference(name, **options)
        if thin:
            _narrow(theirs.classifier, **thin)
    generator = torch.Generator().manual_seed(0)
    theirs = theirs.to_empty(device="cpu")
    for key, value in theirs.state_dict().items():
        fill(key, value, generator)
    ours = ours.to_empty(device="cpu")
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def _narrow(classifier: nn.Sequential, hidden: int) -> None:
    """Give the hidden linear layers of a published classifier `hidden` units."""
    linears = [index for index, layer in enumerate(classifier) if isinstance(layer, nn.Linear)]
    for index in linears:
        full = classifier[index]
        inputs = full.in_features if index == linears[0] else hidden
        outputs = full.out_features if index == linears[-1] else hidden
        classifier[index] = nn.Linear(inputs, outputs)


def fill(key: str, value: Tensor, generator: torch.Generator) -> None:
    """Random values that let activations neither grow nor vanish: larger ones would saturate the sigmoids of
    squeeze-and-excitation, through which rounding grows from block to block."""
    if value.dtype == torch.int64:  # num_batches_tracked
        value.zero_()
    elif value.dim() > 1:
        value.normal_(std=value[0].numel() ** -0.5, generator=generator)
    elif key.endswith(("running_var", "weight")):
        value.uniform_(0.5, 1.5, generator=generator)
    else:
        value.normal_(std=0.1, generator=generator)


def stacked(output: Tensor | tuple[Tensor, ...] | dict[str, Tensor]) -> Tensor:
    """All logits of a network: those of its auxiliary classifiers are of the same shape."""
    if isinstance(output, Tensor):
        return output
    return torch.stack(list(output.values() if isinstance(output, dict) else output))


def image_batch(size: int = 64) -> Tensor:
    """Two random images, [2, 3, size, size + 32]: height and width differ so that swapped axes show."""
    return torch.randn(2, 3, size, size + 32, generator=torch.Generator().manual_seed(1))


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|; 0 where both are zero."""
    difference = (ours - theirs).abs().max().item()
    return difference / theirs.abs().max().item() if difference else 0.0
