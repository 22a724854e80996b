"""Gives residuals and activations to the operator before them, whose kernel applies them before it stores a result.

An operator's result that only an addition reads becomes its sum with the other operand; one that only an activation
reads becomes activated. Of two operators that are added to each other the later one takes the other as its residual.
"""

from __future__ import annotations

from torch import fx

from fastconv.graph import operators
from fastconv.graph.network import Network


def run(network: Network) -> None:
    for node in network.calls(operators.map2d):
        x, scale, residual = _operands(node)
        if scale is not None:
            continue
        activation = {name: node.kwargs[name] for name in ("activation", "alpha") if name in node.kwargs}
        if residual is None:
            producer = x if _takes_activation(x) else None
        else:
            order = {other: i for i, other in enumerate(network.graph.nodes)}
            able = [a for a in (x, residual) if _takes_residual(a) and a is not (residual if x is a else x)]
            producer = max(able, key=order.__getitem__, default=None) if x is not residual else None
        if producer is None:
            continue
        other = None if residual is None else (residual if producer is x else x)
        _join(network, node, producer, other, activation)


def _operands(node: fx.Node) -> tuple[fx.Node | None, ...]:
    return (*node.args, None, None)[:3]


def _plain(node: object) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.target in operators.FUSED
        and len(node.users) == 1
        and node.kwargs.get("activation", "none") == "none"
    )


def _residual_place(node: fx.Node) -> int:
    return 2 if node.target is operators.map2d else 3


def _takes_activation(node: object) -> bool:
    return _plain(node)


def _takes_residual(node: object) -> bool:
    if not _plain(node):
        return False
    place = _residual_place(node)
    return len(node.args) <= place or node.args[place] is None


def _join(network: Network, node: fx.Node, producer: fx.Node, residual: fx.Node | None, activation: dict) -> None:
    """Runs the producer where the node stands, so that the residual is there."""
    args = list(producer.args)
    if residual is not None:
        place = _residual_place(producer)
        args += [None] * (place + 1 - len(args))
        args[place] = residual
    network.replace(node, producer.target, tuple(args), {**producer.kwargs, **activation})
    network.graph.erase_node(producer)
