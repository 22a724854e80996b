"""Splits axes before they are permuted instead of behind, and joins none for a linear layer alone, so that tokens need
not change their order: as in PyTorch's attention layer, which joins images and heads, permutes and takes them apart."""

from __future__ import annotations

from torch import fx

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.translate import rank, same, shape


def run(network: Network) -> None:
    for node in network.calls(operators.reshape):
        _split_early(network, node)
    for node in network.calls(operators.linear):
        _apart(network, node)
    network.drop_unused()


def _split_early(network: Network, node: fx.Node) -> None:
    """reshape, permute, reshape that takes one axis in two -> reshape, permute."""
    permuted = node.args[0]
    if permuted.target is not operators.permute or permuted.args[0].target is not operators.reshape:
        return
    first, axes = permuted.args[0], permuted.kwargs["axes"]
    before, size = first.kwargs["size"], node.kwargs["size"]
    place = _taken_apart([before[axis] for axis in axes], size)
    if place is None:
        return
    split = axes[place]
    finer = (*before[:split], *size[place : place + 2], *before[split + 1 :])
    moved = [axis + (axis > split) for axis in axes]
    moved.insert(place + 1, split + 1)
    with network.graph.inserting_before(node):
        call = network.graph.call_function(operators.reshape, (first.args[0],), {"size": finer})
    call.meta = dict(node.meta)
    network.replace(node, operators.permute, (call,), {"axes": tuple(moved)})


def _taken_apart(before: list[int], size: tuple[int, ...]) -> int | None:
    """The only axis that becomes two, or None."""
    if len(size) != len(before) + 1 or size.count(-1) > 1:
        return None
    for place, whole in enumerate(before):
        rest = (tuple(before[:place]), tuple(before[place + 1 :])) == (tuple(size[:place]), tuple(size[place + 2 :]))
        pair = size[place : place + 2]
        if rest and (-1 in pair if whole == -1 else pair[0] * pair[1] == whole):
            return place
    return None


def _apart(network: Network, node: fx.Node) -> None:
    """A linear layer on rows that were joined before it and are taken apart behind it, on what was not joined."""
    joined, users = node.args[0], list(node.users)
    if joined.target is not operators.reshape or rank(joined) != 2 or len(users) != 1 or len(node.args) > 3:
        return
    behind, source = users[0], joined.args[0]
    if behind.target is not operators.reshape or shape(source) is None or rank(behind) > rank(source):
        return
    outer = rank(behind) - 1
    if not same(shape(source)[:outer], shape(behind)[:outer]):
        return
    size = (*behind.kwargs["size"][:-1], shape(joined)[-1])
    with network.graph.inserting_before(behind):
        rows = network.graph.call_function(operators.reshape, (source,), {"size": size})
    rows.meta = {**joined.meta, "val": joined.meta["val"].new_empty([1] * len(size))}
    call = network.replace(behind, operators.linear, (rows, *node.args[1:]), dict(node.kwargs))
    call.meta["name"] = node.meta.get("name", node.name)
