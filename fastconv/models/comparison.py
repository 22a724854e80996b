"""Parameters, FLOPs and depth of networks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fastconv.models.registry import create_model, list_models, model_info
from fastconv.models.tracing import evaluating, layer_of, trace

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Standing:
    """One network: trainable values, FLOPs of one image at `image_size` (twice the multiply-adds), weighted layers."""

    name: str
    image_size: int
    parameters: int
    flops: int
    depth: int


def compare_models(names: Sequence[str] = ()) -> list[Standing]:
    """The networks named, or all there are, by their FLOPs. ValueError with the closest names for an unknown one."""
    infos = [model_info(name) for name in dict.fromkeys(names or list_models())]
    with torch.device("meta"):
        standings = [
            Standing(
                info.name, info.image_size, info.parameters, 2 * info.multiply_adds, depth(create_model(info.name))
            )
            for info in infos
        ]
    return sorted(standings, key=lambda standing: (standing.flops, standing.name))


def depth(model: nn.Module) -> int:
    """Convolutions, transposed ones and linear layers on the longest way from the image to the result: the number in
    the names of VGG, ResNet and DenseNet. Parallel branches and projections beside the way do not add up."""
    with evaluating(model):
        traced = trace(model)
    behind = {}
    for node in traced.graph.nodes:
        before = max((behind[other] for other in node.all_input_nodes), default=0)
        behind[node] = before + isinstance(layer_of(traced, node), _WEIGHTED)
    return max(behind.values())
