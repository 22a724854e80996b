"""Opens concatenations inside concatenations, and drops those of one tensor."""

from __future__ import annotations

from fastconv.graph import operators
from fastconv.graph.network import Network


def run(network: Network) -> None:
    for node in network.calls(operators.cat):
        parts = []
        for part in node.args[0]:
            parts += part.args[0] if part.target is operators.cat else [part]
        if len(parts) == 1:
            node.replace_all_uses_with(parts[0])
            network.graph.erase_node(node)
        else:
            node.args = (parts,)
    network.drop_unused()
