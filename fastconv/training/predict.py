"""What trained networks say about pictures: one network or an ensemble, one view of a picture or ten."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.models import coco_labels, imagenet_labels, pretrained_path
from fastconv.models.detection import Detections
from fastconv.models.images import load_image, read_pixels
from fastconv.models.registry import create_model, list_models, model_info
from fastconv.models.weights import CheckpointMismatch, adopt_weights, read_weights
from fastconv.training import checkpoint
from fastconv.training.augment import central, resize, ten_crops
from fastconv.training.loader import normalize

_IMAGENET_CLASSES = 1000
_SURE = 0.5  # score above which a detection is reported
_FULL_RANGE = 255
_ON_COCO = "fasterrcnn_resnet50_fpn"  # whose weights torchvision publishes
_SHORTER, _LONGER = 800, 1333  # at most, of the pictures these see


@dataclass(frozen=True)
class Prediction:
    """Classes of a picture, the likeliest first, with their probabilities."""

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predictor:
    """Networks of one architecture and the same classes; their probabilities are averaged.

    `view(source, ten)` makes one picture the network's input, [1 or 10, C, size, size].
    """

    networks: tuple[nn.Module, ...]
    classes: tuple[str, ...]
    view: Callable[[object, bool], Tensor]
    told: str

    @torch.no_grad()
    def __call__(self, source: str | os.PathLike, *, top: int = 5, ten: bool = False) -> Prediction:
        """The `top` classes of the picture `source`; over ten crops of it where `ten` is asked."""
        views = self.view(source, ten)
        probabilities = torch.stack([network(views).softmax(1).mean(0) for network in self.networks]).mean(0)
        best = probabilities.topk(min(top, len(self.classes)))
        return Prediction(tuple(self.classes[i] for i in best.indices.tolist()), tuple(best.values.tolist()))


def load_predictor(name: str, paths: Sequence[str | os.PathLike] = (), *, layers: str = "fastconv") -> Predictor:
    """The model `name` with the weights in `paths`, or with those an installed package carries.

    A path is a checkpoint of training, or a state dict for ImageNet's classes (.safetensors, or torch's format).
    Several are an ensemble. ValueError in one sentence where they do not fit the model or each other.
    """
    info = model_info(name)
    if info.dense:
        raise ValueError(f"{name} gives a class for every pixel; predicting names the class of a whole picture.")
    if info.boxes:
        raise ValueError(f"{name} finds boxes; load_detector has it, and this names the class of a whole picture.")
    if not paths:
        try:
            path = pretrained_path(name)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"There are no weights: give a checkpoint. {error}") from error
        return _published(name, [path], layers)
    kinds = {Path(path).suffix == ".safetensors" and checkpoint.has_state(path) for path in paths}
    if len(kinds) > 1:
        raise ValueError("Checkpoints of training and published weights do not make one ensemble.")
    return _trained(name, paths, layers) if kinds == {True} else _published(name, paths, layers)


@dataclass(frozen=True)
class Detector:
    """A trained detector: a picture -> what was found in it, with boxes in the picture's own pixels.

    `view(picture)` makes [3, H, W] the network's input.
    """

    network: nn.Module
    classes: tuple[str, ...]
    view: Callable[[Tensor], Tensor]
    told: str

    @torch.no_grad()
    def __call__(self, source: str | os.PathLike, *, score: float = _SURE) -> Detections:
        """Detections surer than `score`, the surest first."""
        image = _unit(source, channels=3)
        x = self.view(image)
        (found,) = self.network.detect(self.network(x), score=score)
        height, width = (own / seen for own, seen in zip(image.shape[1:], x.shape[2:], strict=True))
        return found._replace(boxes=found.boxes * torch.tensor([width, height, width, height]))


def load_detector(name: str, path: str | os.PathLike, *, layers: str = "fastconv") -> Detector:
    """The detector `name` with the weights in `path`; a ValueError in one sentence where they do not fit.

    `path` is a checkpoint of training, or torchvision's state dict of `fasterrcnn_resnet50_fpn` on COCO.
    """
    info = model_info(name)
    if not info.boxes:
        known = ", ".join(other for other in list_models() if model_info(other).boxes)
        raise ValueError(f"The argument name={name!r} is not the name of a detector; there are {known}.")
    if name == _ON_COCO and not (Path(path).suffix == ".safetensors" and checkpoint.has_state(path)):
        return _on_coco(path, layers)
    weights, state, (classes, size, _) = _read_trained(name, path)
    network = create_model(name, layers=layers, num_classes=len(classes))
    _load(network, weights, name, path)

    def view(image: Tensor) -> Tensor:
        return normalize(resize(image, size, size), info.normalization).unsqueeze(0)

    return Detector(network, classes, view, f"trained on {state['job']['data']}")


def _on_coco(path: str | os.PathLike, layers: str) -> Detector:
    """Torchvision's detector as it publishes it: its sizes, and frozen batch norms, which count no batches, without an
    epsilon."""
    info = model_info(_ON_COCO)

    def adopted(state: Mapping[str, Tensor]) -> nn.Module:
        counted = any(key.endswith("num_batches_tracked") for key in state)
        options = {} if counted else {"norm_eps": 0.0}
        return adopt_weights(create_model(_ON_COCO, layers=layers, **options), state, path)

    def view(image: Tensor) -> Tensor:
        sides = image.shape[1:]
        scale = min(_SHORTER / min(sides), _LONGER / max(sides))
        size = [int(side * scale) for side in sides]
        x = normalize(image, info.normalization).unsqueeze(0)
        return F.interpolate(x, size, mode="bilinear", align_corners=False)

    return Detector(_used(adopted, path), coco_labels(), view, "published weights")


def _published(name: str, paths: Sequence[str | os.PathLike], layers: str) -> Predictor:
    info = model_info(name)

    def adopted(state: Mapping[str, Tensor], path: str | os.PathLike) -> nn.Module:
        return adopt_weights(create_model(name, layers=layers), state, path)

    networks = [_used(partial(adopted, path=path), path) for path in paths]

    def view(source: object, ten: bool) -> Tensor:
        if not ten:
            return load_image(source, info.image_size, info.normalization)
        return normalize(ten_crops(_unit(source, info.channels), info.image_size, 1.0), info.normalization)

    classes = imagenet_labels() if info.classes == _IMAGENET_CLASSES else tuple(map(str, range(info.classes)))
    return Predictor(tuple(networks), classes, view, "published weights")


def _used(adopted: Callable[[Mapping[str, Tensor]], nn.Module], path: str | os.PathLike) -> nn.Module:
    """What `adopted` makes of the weights in `path`, in eval mode; a ValueError in one sentence where it cannot."""
    try:
        return adopted(read_weights(path)).eval()
    except FileNotFoundError:
        raise ValueError(f"There is no checkpoint {path}.") from None
    except (ImportError, TypeError, CheckpointMismatch) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # readers raise many kinds for a damaged file, and advice that is none here
        raise ValueError(f"The checkpoint {path} is damaged, or holds more than weights.") from error


def _trained(name: str, paths: Sequence[str | os.PathLike], layers: str) -> Predictor:
    info = model_info(name)
    networks, uses = [], []
    for path in paths:
        weights, state, use = _read_trained(name, path)
        if uses and use != uses[0]:
            raise checkpoint.CheckpointError(f"The checkpoint {path} has other classes or sizes than {paths[0]}.")
        uses.append(use)
        network = create_model(name, layers=layers, num_classes=len(use[0]))
        networks.append(_load(network, weights, name, path))
    classes, size, margin = uses[0]

    def view(source: object, ten: bool) -> Tensor:
        image = _unit(source, info.channels)
        views = ten_crops(image, size, margin) if ten else central(image, size, margin).unsqueeze(0)
        return normalize(views, info.normalization)

    return Predictor(tuple(networks), classes, view, f"trained on {state['job']['data']}")


def _read_trained(name: str, path: str | os.PathLike) -> tuple[dict[str, Tensor], dict, tuple]:
    """Weights, state, and classes, size and margin of a training checkpoint of that model."""
    tensors, state = checkpoint.read(path)
    try:
        model, use = state["job"]["model"], (tuple(state["classes"]), state["size"], state["margin"])
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"The checkpoint {path} lacks a part of its state: {error}.") from error
    if model != name:
        raise checkpoint.CheckpointError(f"The checkpoint {path} is one of {model}, not of {name}.")
    weights = checkpoint.under("average", tensors) or checkpoint.under("model", tensors) or tensors
    return weights, state, use


def _load(network: nn.Module, weights: dict[str, Tensor], name: str, path: str | os.PathLike) -> nn.Module:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise checkpoint.CheckpointError(f"The checkpoint {path} does not fit {name}: {error}") from error
    return network.eval()


def _unit(source: object, channels: int) -> Tensor:
    return read_pixels(source, channels).float() / _FULL_RANGE
