"""A classifier slid over images of any size, as one network: its linear layers become convolutions."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fastconv.models.registry import layer_module
from fastconv.models.tracing import evaluating, layer_of, trace

_IMAGE_AXES = 4  # N, C, H, W
# Layers that treat every value alone: the classifier may have them around its linear layers.
_ELEMENTWISE = (nn.Dropout, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.LeakyReLU, nn.Identity)
_ELEMENTWISE_FUNCTIONS = {"relu", "tanh", "sigmoid", "mul", "add", "dropout"}


def to_fully_convolutional(
    model: nn.Module, image: Tensor, *, layers: Literal["fastconv", "torch"] = "fastconv"
) -> fx.GraphModule:
    """A network that gives for every window of an image what the classifier gives for that window.

    model: a classifier, [N, C, H, W] -> [N, classes], that flattens its last map and has linear layers behind it, or
        averages it. It is traced in eval mode; what it does in training only (auxiliary classifiers) is left out.
    image: an input of the size the classifier is made for, [N, C, H, W]; its values do not matter.
    layers: where new convolutions and pools come from.

    The result maps [N, C, H, W] to [N, classes, rows, columns]; for an image of that size it is the classifier's
    output, [N, classes, 1, 1]. A linear layer becomes a convolution as large as the map it saw, with the same
    parameters in the same order and under the same names; an average over the map becomes one over windows of that
    size. Parameters are shared with the model, not copied. Paddings stand at the image's edge, not at each window's.
    Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, 2014, section 3.1.

    Raises ValueError where the model has something else behind its last map.
    """
    with evaluating(model):
        traced = trace(model)
        shapes = _shapes(traced, image)
    conversion = _Conversion(traced, shapes, layer_module(layers))
    for node in list(traced.graph.nodes):
        conversion.convert(node)
    traced.graph.lint()
    traced.recompile()
    traced.training = model.training
    return traced


def _shapes(traced: fx.GraphModule, image: Tensor) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor of the graph."""
    found = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                found[node] = result.shape
            return result

    with torch.no_grad():
        Recorder(traced).run(image)
    return found


class _Conversion:
    """Rewrites one graph. `flat` holds the nodes that were [N, features], with the map [C, H, W] they stand for."""

    def __init__(self, traced: fx.GraphModule, shapes: dict[fx.Node, torch.Size], layers: ModuleType) -> None:
        self.traced, self.shapes, self.layers = traced, shapes, layers
        self.flat: dict[fx.Node, torch.Size] = {}

    def convert(self, node: fx.Node) -> None:
        """Change the node where it is part of the classifier."""
        before = [other for other in node.all_input_nodes if other in self.shapes and other.op != "get_attr"]
        if self._flattens(node):
            self._slide_pool(before[0])
            self.flat[before[0]] = self.shapes[before[0]][1:]
            node.replace_all_uses_with(before[0])
            self.traced.graph.erase_node(node)
            return
        if node.op == "output" or not any(other in self.flat for other in before):
            return
        layer = layer_of(self.traced, node)
        source = before[0]
        if isinstance(layer, nn.Linear):
            self._replace(node, self._convolution(layer, self.flat[source]))
            self.flat[node] = torch.Size([layer.out_features, 1, 1])
        elif isinstance(layer, _ELEMENTWISE) or (layer is None and _name(node) in _ELEMENTWISE_FUNCTIONS):
            self.flat[node] = self.flat[source]
        else:
            what = type(layer).__name__ if layer else _name(node)
            raise ValueError(
                f"The classifier has {what} ({node.name}) behind its flattened map, which has no convolutional form; "
                "linear and elementwise layers do."
            )

    def _flattens(self, node: fx.Node) -> bool:
        """Whether the node turns a map [N, C, H, W] into [N, C*H*W]."""
        if isinstance(layer_of(self.traced, node), nn.Flatten) or _name(node) in ("flatten", "reshape", "view"):
            source = self.shapes[node.args[0]]
            return len(source) == _IMAGE_AXES and self.shapes[node] == (source[0], source[1:].numel())
        return False

    def _slide_pool(self, node: fx.Node) -> None:
        """Make the average in front of a flatten one over windows that move by one."""
        layer = layer_of(self.traced, node)
        while isinstance(layer, _ELEMENTWISE):
            node = node.args[0]
            layer = layer_of(self.traced, node)
        if not isinstance(layer, nn.AdaptiveAvgPool2d):
            return
        size, wanted = self.shapes[node.args[0]][-2:], self.shapes[node][-2:]
        if size == wanted:
            self._replace(node, nn.Identity())
        elif wanted == (1, 1):
            self._replace(node, self.layers.AvgPool2d(tuple(size), stride=1))
        else:
            raise ValueError(
                f"The average {node.target} makes {tuple(wanted)} pixels of {tuple(size)}; only windows over the whole "
                "map slide. Give an image of the size the classifier is made for."
            )

    def _convolution(self, linear: nn.Linear, seen: torch.Size) -> nn.Conv2d:
        """The linear layer as a convolution over the map [C, H, W] it sees, on the same parameters."""
        channels, *kernel = seen
        with torch.device("meta"):
            conv = self.layers.Conv2d(channels, linear.out_features, tuple(kernel), bias=linear.bias is not None)
        conv.weight = nn.Parameter(linear.weight.detach().view(conv.weight.shape), linear.weight.requires_grad)
        conv.bias = linear.bias
        return conv

    def _replace(self, node: fx.Node, layer: nn.Module) -> None:
        parent, _, name = node.target.rpartition(".")
        setattr(self.traced.get_submodule(parent), name, layer)


def _name(node: fx.Node) -> str:
    """ "flatten" of x.flatten and of torch.flatten alike; "" for a layer."""
    if node.op == "call_module":
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
