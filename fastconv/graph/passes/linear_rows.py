"""Linear layers on tensors of four axes become layers on rows of features.

Inside a plan four axes are N C H W, whose channels come second; a linear layer takes its features last, as a Swin
transformer's N H W C. Those axes are flattened before the layer and come back behind it, and what lies between two such
layers and works on single elements stays in rows, so that it can be fused.
"""

from __future__ import annotations

import torch
from torch import fx

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.translate import dtype, rank, shape

_flatten, _unflatten = torch.ops.aten.flatten.using_ints, torch.ops.aten.unflatten.int


def run(network: Network) -> None:
    for node in network.calls(operators.linear):
        if rank(node.args[0]) == 4:
            _in_rows(network, node)
    for node in network.calls(operators.map2d):
        source = node.args[0]
        if len(node.args) == 1 and source.target is _unflatten and len(source.users) == 1 and rank(node) == 4:
            _exchange(network, node, source)
    for node in network.calls(_flatten):
        source = node.args[0]
        if source.target is _unflatten and node.args[1:] == (0, -2) and rank(source.args[0]) == 2:
            node.replace_all_uses_with(source.args[0])
    network.drop_unused()


def _in_rows(network: Network, node: fx.Node) -> None:
    sizes = [size if isinstance(size, int) else -1 for size in shape(node)[:-1]]
    if sizes.count(-1) > 1:
        node.target = torch.ops.aten.linear.default
        return
    with network.graph.inserting_before(node):
        flat = _call(network, _flatten, (node.args[0], 0, -2), 2)
        rows = _call(network, operators.linear, (flat, *node.args[1:]), 2, name=node.meta.get("name", node.name))
    network.replace(node, _unflatten, (rows, 0, sizes), {})


def _exchange(network: Network, node: fx.Node, source: fx.Node) -> None:
    """The map before the axes come back."""
    rows, *rest = source.args
    with network.graph.inserting_before(node):
        mapped = _call(network, operators.map2d, (rows,), 2, node.kwargs, name=node.meta.get("name", node.name))
    network.replace(node, _unflatten, (mapped, *rest), {})


def _call(network: Network, function, args, axes: int, kwargs=None, name: str | None = None) -> fx.Node:
    call = network.graph.call_function(function, args, dict(kwargs or {}))
    call.meta = {"val": torch.empty((0,) * axes, dtype=dtype(args[0]), device="meta")}
    if name:
        call.meta["name"] = name
    return call
