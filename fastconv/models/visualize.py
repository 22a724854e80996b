"""What makes a feature fire: one activation projected back to the pixels, the way ZFNet was found.

projection = project(model, image, "features.8")
save_projection(projection, "feature.png")
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastconv import functional
from fastconv.models.images import require
from fastconv.models.tracing import evaluating, layer_of, trace

_PASSED = (nn.LocalResponseNorm, nn.Dropout, nn.Dropout2d, nn.Identity)
_MAP_DIMENSIONS = 4
_GRAY, _WHITE = 127.5, 255


@dataclass(frozen=True)
class Projection:
    """What in the image one activation of `layer` answers to: `pixels` [C, H, W] in the units of the network's input.

    `value` is the activation of map `channel` at (row, column) `place`.
    """

    pixels: Tensor
    layer: str
    channel: int
    place: tuple[int, int]
    value: float


def project(model: nn.Module, image: Tensor, layer: str, channel: int | None = None) -> Projection:
    """Project the strongest activation of a feature map back to the pixels of `image` [1, C, H, W].

    Zeiler, Fergus: Visualizing and Understanding Convolutional Networks, 2013, section 2.1: all other activations of
    `layer` are set to zero; then, from layer to layer, max pools are undone by putting values where the pool had found
    its maxima (the switches), ReLUs rectify what comes back, and convolutions are transposed with the same filters,
    as are the factors of batch norms. Response norms are passed as if they were not there. Where windows of a pool
    overlap, values that come back to one pixel add up. Without `channel`, the map with the strongest activation is
    taken.

    The layers from the image to `layer` must be a chain of these (ZFNet, AlexNet, VGG, NIN). ValueError for any other
    layer, for an unknown name and for a channel there is not; the model runs in eval mode and stays as it is.
    """
    if image.dim() != _MAP_DIMENSIONS or len(image) != 1:
        raise ValueError(f"One image [1, C, H, W] is projected at a time, but got a tensor of {list(image.shape)}.")
    with evaluating(model), torch.no_grad():
        traced = trace(model)
        chain = _chain(traced, _find(traced, layer))
        model(image.clone())  # says what is wrong with the image better than a layer inside can
        maps, kept = _forward(traced, chain, image.clone())
        if maps.dim() != _MAP_DIMENSIONS:
            raise ValueError(f"The layer {layer!r} has no feature maps; its result has the shape {list(maps.shape)}.")
        channel, place = _strongest(maps, layer, channel)
        signal = torch.zeros_like(maps)
        signal[0, channel][place] = maps[0, channel][place]
        for node, (size, switches) in zip(reversed(chain), reversed(kept), strict=True):
            signal = _back(layer_of(traced, node), signal, size, switches)
    return Projection(signal[0], layer, channel, place, float(maps[0, channel][place]))


def _find(traced: fx.GraphModule, layer: str) -> fx.Node:
    nodes = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == layer]
    if not nodes:
        names = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
        close = difflib.get_close_matches(str(layer), names, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(names)}."
        raise ValueError(f"The network has no layer {layer!r}. {hint}")
    return nodes[0]


def _chain(traced: fx.GraphModule, last: fx.Node) -> list[fx.Node]:
    """The layers from the image to `last`; a ValueError that names what cannot be gone back through."""
    chain, node = [], last
    while node.op != "placeholder":
        layer = layer_of(traced, node)
        if layer is None or not _known(layer):
            what = f"{node.target} ({type(layer).__name__})" if layer is not None else f"the function {node.name}"
            raise ValueError(
                f"The layer {str(last.target)!r} cannot be projected, because {what} lies between it and the image: "
                "convolutions, ReLUs, max pools, batch norms, response norms and dropout can be gone back through."
            )
        chain.append(node)
        node = node.all_input_nodes[0]
    return chain[::-1]


def _known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    if isinstance(layer, nn.BatchNorm2d):
        return layer.track_running_stats and layer.affine
    return isinstance(layer, (nn.ReLU, nn.MaxPool2d, *_PASSED))


def _forward(
    traced: fx.GraphModule, chain: list[fx.Node], x: Tensor
) -> tuple[Tensor, list[tuple[torch.Size, Tensor | None]]]:
    """The result of the chain, and what going back takes: each layer's input size, and the switches of pools."""
    kept = []
    for node in chain:
        layer, size, switches = layer_of(traced, node), x.shape, None
        if isinstance(layer, nn.MaxPool2d):
            options = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
            x, switches = functional.max_pool2d(x, *options, return_indices=True)
        else:
            x = layer(x)
        kept.append((size, switches))
    return x, kept


def _strongest(maps: Tensor, layer: str, channel: int | None) -> tuple[int, tuple[int, int]]:
    if channel is not None and not 0 <= channel < maps.shape[1]:
        raise ValueError(f"The layer {layer!r} has maps 0 to {maps.shape[1] - 1}, but channel is {channel}.")
    if channel is None:
        channel = int(maps[0].flatten(1).amax(1).argmax())
    row, column = divmod(int(maps[0, channel].argmax()), maps.shape[3])
    return channel, (row, column)


def _back(layer: nn.Module, signal: Tensor, size: torch.Size, switches: Tensor | None) -> Tensor:
    """The signal behind a layer -> the signal in front of it, of the shape `size`."""
    if isinstance(layer, nn.ReLU):
        return signal.relu()
    if switches is not None:
        unpooled = signal.new_zeros(size).flatten(2)
        return unpooled.scatter_add_(2, switches.flatten(2), signal.flatten(2)).view(size)
    if isinstance(layer, nn.Conv2d):
        geometry = (layer.stride, layer.padding, layer.dilation, layer.kernel_size)
        spare = [  # pixels at the end that no window reached
            length - ((out - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
            for length, out, stride, padding, dilation, kernel in zip(
                size[2:], signal.shape[2:], *geometry, strict=True
            )
        ]
        return functional.conv_transpose2d(
            signal, layer.weight, None, layer.stride, layer.padding, spare, layer.groups, layer.dilation
        )
    if isinstance(layer, nn.BatchNorm2d):
        return signal * (layer.weight / (layer.running_var + layer.eps).sqrt()).view(-1, 1, 1)
    return signal


def save_projection(projection: Projection, path: str | os.PathLike) -> None:
    """The pixels as a picture: zero is gray, the largest value of either sign black or white."""
    to_picture(projection.pixels).save(Path(path))


def to_picture(pixels: Tensor) -> Any:
    """[C, H, W] with C 1 or 3 as a Pillow image, zero in the middle of its range."""
    scale = pixels.abs().max().clamp_min(torch.finfo(pixels.dtype).tiny)
    values = (_GRAY * (1 + pixels / scale)).round().clamp(0, _WHITE).to(torch.uint8)
    array = values.permute(1, 2, 0).contiguous().numpy()
    return require("PIL.Image", "pillow").fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
