"""Which results are written into a concatenation's buffer instead of memory of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fastconv.graph import operators


def find(
    nodes: Sequence[fx.Node], shapes: dict[fx.Node, Any], outputs: set[fx.Node]
) -> dict[fx.Node, tuple[fx.Node, int]]:
    """Nodes whose results are channels of a concatenation: which one, and from where on. The last come first, so that a
    concatenation that begins a later one is found to be a slice of it."""
    slices: dict[fx.Node, tuple[fx.Node, int]] = {}
    here = set(nodes)
    for node in reversed(nodes):
        if node.target is not operators.cat:
            continue
        parts, widths = node.args[0], [shapes[x].shape[1] for x in node.args[0]]
        places = [slices.get(x) for x in parts]
        if (
            node not in outputs
            and all(places)
            and len({whole for whole, _ in places}) == 1
            and len(set(parts)) == len(parts)
        ):
            starts = [offset for _, offset in places]
            if all(a + width == b for a, width, b in zip(starts, widths, starts[1:], strict=False)):
                slices[node] = (places[0][0], starts[0])
                continue
        offset = 0
        for x, width in zip(parts, widths, strict=True):
            once = sum(part is x for part in parts) == 1
            if once and x in here and x not in slices and x not in outputs and x.target is not operators.flatten:
                slices[x] = (node, offset)
            offset += width
    return slices
