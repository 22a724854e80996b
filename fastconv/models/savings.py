"""What two ideas save a network: 1x1 convolutions in front of large filters, and large filters one channel at a time.

Each is set beside the one dense convolution that would take the same map to the same map.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fastconv.models.layer_table import LayerRow, layer_table
from fastconv.models.tracing import evaluating, layer_of, trace

BOTTLENECK = "1x1 bottlenecks"
SEPARATION = "depthwise separation"


@dataclass(frozen=True)
class Saving:
    """One idea over a whole network: `places` where it is used, multiply-adds and weights with it and without."""

    idea: str
    places: int
    multiply_adds: int
    dense_multiply_adds: int
    weights: int
    dense_weights: int


def savings(model: nn.Module, image: Tensor) -> list[Saving]:
    """The ideas the network uses, for an image [N, C, H, W]; the meta device will do.

    A bottleneck is a 1x1 convolution to fewer channels, a larger filter and, where one follows, a 1x1 convolution to
    more; a separation is a filter for each channel and a 1x1 convolution. Biases are not counted.
    """
    with evaluating(model), torch.no_grad():
        traced = trace(model)
    rows = {row.name: row for row in layer_table(model, image).rows}
    after = {}
    for node in traced.graph.nodes:
        if isinstance(layer_of(traced, node), nn.Conv2d):
            before = _convolution_before(traced, node, rows)
            if before is not None:
                after.setdefault(before, []).append(node)
    found: dict[str, list[tuple[int, int, int, int]]] = {BOTTLENECK: [], SEPARATION: []}
    for first, followers in after.items():
        for second in followers:
            idea, chain = _idea(traced, first, second, after)
            if idea:
                found[idea].append(_figures([(layer_of(traced, n), rows[str(n.target)]) for n in chain]))
    return [
        Saving(idea, len(places), taken, dense, weights, dense_weights)
        for idea, places in found.items()
        if places
        for taken, dense, weights, dense_weights in [[sum(column) for column in zip(*places, strict=True)]]
    ]


def _convolution_before(traced: fx.GraphModule, node: fx.Node, rows: dict[str, LayerRow]) -> fx.Node | None:
    """The convolution whose result, normalised, squashed or scaled by channel, this one reads."""
    found = []
    for other in node.all_input_nodes:
        layer = layer_of(traced, other)
        if isinstance(layer, nn.Conv2d):
            found.append(other)
        elif _keeps_maps(layer) or (other.op == "call_function" and other.target in (operator.mul, torch.mul)):
            found.append(_convolution_before(traced, other, rows))
    # Of a map and its scales, which have convolutions of their own, the map.
    found = [other for other in found if other is not None]
    return max(found, key=lambda other: rows[str(other.target)].output_shape[-1], default=None)


def _keeps_maps(layer: nn.Module | None) -> bool:
    return layer is not None and not isinstance(layer, nn.Linear) and "Pool" not in type(layer).__name__


def _idea(
    traced: fx.GraphModule, first: fx.Node, second: fx.Node, after: dict[fx.Node, list[fx.Node]]
) -> tuple[str | None, list[fx.Node]]:
    a, b = layer_of(traced, first), layer_of(traced, second)
    if a.groups == a.in_channels > 1 and _large(a) and _pointwise(b):
        return SEPARATION, [first, second]
    if _pointwise(a) and a.out_channels < a.in_channels and _large(b) and b.groups == 1:
        wider = [n for n in after.get(second, []) if _pointwise(layer_of(traced, n))]
        wider = [n for n in wider if layer_of(traced, n).out_channels > b.out_channels]
        return BOTTLENECK, [first, second, *wider[:1]]
    return None, []


def _large(conv: nn.Conv2d) -> bool:
    return max(conv.kernel_size) > 1


def _pointwise(conv: nn.Conv2d) -> bool:
    return max(conv.kernel_size) == 1 and conv.groups == 1


def _figures(chain: list[tuple[nn.Conv2d, LayerRow]]) -> tuple[int, int, int, int]:
    """Multiply-adds and weights of the chain, and of one dense convolution in its place."""
    large = next(conv for conv, _ in chain if _large(conv))
    inputs, (last, row) = chain[0][0].in_channels, chain[-1]
    weights = large.kernel_size[0] * large.kernel_size[1] * inputs * last.out_channels
    batch, _, height, width = row.output_shape
    taken = sum(r.multiply_adds for _, r in chain)
    return taken, weights * batch * height * width, sum(conv.weight.numel() for conv, _ in chain), weights
