"""Computes what follows from constants alone: a table of positions looked up, a class token expanded, a weight that is
standardised."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastconv.graph.network import Network


def run(network: Network) -> None:
    for node in list(network.graph.nodes):
        if node.op != "call_function" or not _is_constant(network, node):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), network.tensor)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        if isinstance(value, Tensor):
            node.replace_all_uses_with(network.constant(node, value, f"{node.name}.folded"))
            network.graph.erase_node(node)
    network.drop_unused()


def _is_constant(network: Network, node: fx.Node) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and not node.is_impure() and all(network.is_constant(source) for source in inputs)
