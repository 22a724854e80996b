"""Which parts of a graph become plans, and which stay PyTorch.

A plan holds operators of :mod:`fastconv.graph.operators` between which no result passes through PyTorch. Operators that
share nothing but small work stay PyTorch too: a plan must hold a layer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.rules import LOWER
from fastconv.graph.translate import dtype
from fastconv.graph.values import DTYPES

LAYERS = (operators.conv2d, operators.conv_transpose2d, operators.linear, operators.max_pool2d, operators.avg_pool2d,
          operators.layer_norm, operators.attention)  # fmt: skip
# Whose second and third operand may be values.
OF_VALUES = (operators.map2d, operators.cat, operators.attention)


@dataclass(frozen=True)
class Part:
    """Nodes that run together, in order: as a plan, or one by one in PyTorch."""

    nodes: tuple[fx.Node, ...]
    planned: bool
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def partition(network: Network) -> list[Part]:
    """The network's calls in an order in which each part finds its inputs made."""
    depth: dict[fx.Node, int] = {}
    planned = {node for node in network.graph.nodes if _can(network, node)}
    for node in network.graph.nodes:
        # A step deeper wherever results pass between a plan and PyTorch, so that parts of one depth need each other
        # in no way that leads through another part.
        depth[node] = max((_below(depth, source, node, planned) for source in _calls(node)), default=0)
    parts: list[list[fx.Node]] = []
    for level in range(max(depth.values(), default=0) + 1):
        for kind in (False, True):
            group = [n for n in network.graph.nodes if _is_call(n) and depth[n] == level and (n in planned) == kind]
            if group:
                parts.append(group)
    return [_part(group, group[0] in planned and any(n.target in LAYERS for n in group)) for group in parts]


def sized_by_values(graph: fx.Graph) -> fx.Node | None:
    """A layer whose sizes depend on values, so that any call may need a program of its own, or None."""
    return next((n for n in graph.nodes if n.target in LAYERS and free_unbacked_symbols(n.meta["val"])), None)


def left_to_pytorch(parts: list[Part]) -> Counter[str]:
    """The operators that no plan runs, and how often they occur."""
    return Counter(_name(node) for part in parts if not part.planned for node in part.nodes)


def _name(node: fx.Node) -> str:
    return str(node.target) if hasattr(node.target, "_schema") else node.target.__name__


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_function"


def _calls(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if _is_call(source)]


def _below(depth: dict[fx.Node, int], source: fx.Node, node: fx.Node, planned: set[fx.Node]) -> int:
    return depth[source] + ((source in planned) != (node in planned))


def _can(network: Network, node: fx.Node) -> bool:
    """Whether a plan runs the node: an operator of ours on floating point numbers whose filters are constants."""
    if not _is_call(node) or node.target not in LOWER or dtype(node) not in DTYPES:
        return False
    constants = node.args[1:3] if node.target not in OF_VALUES else ()
    if any(isinstance(c, fx.Node) and not network.is_constant(c) for c in constants):
        return False
    tensors = [n for n in node.all_input_nodes if not network.is_constant(n)]
    return all(dtype(n) == dtype(node) for n in node.all_input_nodes) and bool(tensors)


def _part(group: list[fx.Node], planned: bool) -> Part:
    inside = set(group)
    sources = (
        n for node in group for n in node.all_input_nodes if n not in inside and not (planned and n.op == "get_attr")
    )
    outputs = (node for node in group if any(user not in inside for user in node.users))
    return Part(tuple(group), planned, tuple(dict.fromkeys(sources)), tuple(outputs))
