"""Removes what nobody uses, joins what is computed twice, and drops pools that change nothing."""

from __future__ import annotations

from typing import Any

from torch import fx

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.translate import shape


def run(network: Network) -> None:
    for node in network.calls(operators.adaptive_avg_pool2d, operators.adaptive_max_pool2d):
        source = shape(node.args[0])
        if source is not None and source[2:] == node.kwargs["size"]:
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    _join(network)
    network.drop_unused()


def _join(network: Network) -> None:
    """Equal calls of this library's operators on equal arguments, and names of one tensor, become one."""
    seen: dict[Any, fx.Node] = {}
    for node in list(network.graph.nodes):
        if node.op == "get_attr":
            key: Any = ("tensor", id(network.tensors.entry(node.target)))
        elif node.op == "call_function" and node.target in operators.ALL:
            key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            network.graph.erase_node(node)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _frozen(v)) for k, v in value.items()))
    return value
