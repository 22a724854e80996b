"""Constant tokens that stand before those of every image, as a vision transformer's class token, become one operator
that writes them."""

from __future__ import annotations

import torch
from torch import fx

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.translate import rank, shape

_CAT, _EXPAND = torch.ops.aten.cat.default, torch.ops.aten.expand.default


def run(network: Network) -> None:
    for node in network.calls(_CAT):
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        if len(parts) != 2 or axis not in (1, -2) or rank(node) != 3 or network.is_constant(parts[1]):
            continue
        tokens = _expanded(network, parts[0])
        if tokens is not None:
            network.replace(node, operators.leading_tokens, (parts[1], tokens), {})
    network.drop_unused()


def _expanded(network: Network, node: fx.Node) -> fx.Node | None:
    """The constant (1, tokens, channels) that is the same for every image, or None."""
    if node.target is not _EXPAND or not network.is_constant(node.args[0]):
        return None
    given = shape(node.args[0])
    return node.args[0] if len(given) == 3 and given[0] == 1 and given[1:] == shape(node)[1:] else None
