"""The rules of :mod:`fastconv.graph.translate` for what works on rows of features (layer norm, softmax, attention), and
for views.
"""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

from torch import fx

from fastconv.graph import operators
from fastconv.graph.translate import RULES, Arguments, Call, aten, dtype, rank, reshaped, rule, same, shape

# --- views ------------------------------------------------------------------------------------------------------------

rule(aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)(reshaped)


def _permuted(a: Arguments, axes: list[int]) -> Call | None:
    return Call(operators.permute, (a["self"],), {"axes": tuple(axes)}) if rank(a["self"]) > 0 else None


@rule(aten.permute.default)
def _permute(a: Arguments) -> Call | None:
    return _permuted(a, [axis % rank(a["self"]) for axis in a["dims"]])


@rule(aten.transpose.int)
def _transpose(a: Arguments) -> Call | None:
    return _exchanged(a, a["dim0"], a["dim1"])


@rule(aten.swapaxes.default)
def _swapaxes(a: Arguments) -> Call | None:
    return _exchanged(a, a["axis0"], a["axis1"])


def _exchanged(a: Arguments, first: int, second: int) -> Call | None:
    axes = list(range(rank(a["self"])))
    axes[first], axes[second] = axes[second], axes[first]
    return _permuted(a, axes)


def _narrowed(x: Any, axis: int, start: int, length: int) -> Call:
    return Call(operators.narrow, (x,), {"axis": axis, "start": start, "length": length})


@rule(aten.select.int)
def _select(a: Arguments) -> Call | None:
    sizes, axis = shape(a["self"]), a["dim"] % max(1, rank(a["self"]))
    if not isinstance(a["index"], int) or not isinstance(sizes[axis], int):
        return None
    return Call(operators.select, (a["self"],), {"axis": axis, "index": a["index"] % sizes[axis]})


@rule(aten.slice.Tensor)
def _slice(a: Arguments) -> Call | fx.Node | None:
    sizes, axis = shape(a["self"]), a["dim"] % max(1, rank(a["self"]))
    start, end, size = a["start"] or 0, a["end"], sizes[axis]
    if start == 0 and a["step"] == 1 and same(shape(a["node"]), sizes):
        return a["self"]
    if not isinstance(size, int) or not isinstance(start, int) or not isinstance(end, int | None) or a["step"] != 1:
        return None
    first, last, _ = slice(start, end).indices(size)
    return _narrowed(a["self"], axis, first, last - first) if last > first else None


@rule(aten.narrow.default)
def _narrow(a: Arguments) -> Call | None:
    sizes, axis, start, length = shape(a["self"]), a["dim"] % max(1, rank(a["self"])), a["start"], a["length"]
    if not all(isinstance(v, int) for v in (sizes[axis], start, length)) or length == 0:
        return None
    return _narrowed(a["self"], axis, start % sizes[axis] if start < 0 else start, length)


# Where each operator that cuts a tensor in pieces names its axis.
PIECES = {aten.chunk.default: 2, aten.split.Tensor: 2, aten.split_with_sizes.default: 2, aten.unbind.int: 1}
_other_results = RULES[operator.getitem]


@rule(operator.getitem)
def _part(a: Arguments) -> Call | fx.Node | None:
    """Of a tensor in pieces, or what :mod:`fastconv.graph.translate` knows of others."""
    whole, number = a[0], a[1]
    pieces = PIECES.get(whole.target) if isinstance(whole, fx.Node) and whole.op == "call_function" else None
    if pieces is None:
        return _other_results(a)
    x, sizes = whole.args[0], shape(whole.args[0])
    axis = _axis(whole) % max(1, len(sizes))
    if not isinstance(sizes[axis], int):
        return None
    if whole.target is aten.unbind.int:
        return Call(operators.select, (x,), {"axis": axis, "index": number})
    lengths = [value.shape[axis] for value in whole.meta["val"]]
    if not all(isinstance(length, int) and length > 0 for length in lengths):
        return None
    return _narrowed(x, axis, [0, *accumulate(lengths)][number], lengths[number])


def _axis(node: fx.Node) -> int:
    place = PIECES[node.target]
    return node.kwargs.get("dim", node.args[place] if len(node.args) > place else 0)


# --- rows -------------------------------------------------------------------------------------------------------------


@rule(aten.layer_norm.default)
def _layer_norm(a: Arguments) -> Call | None:
    axes = len(a["normalized_shape"])
    if rank(a["input"]) <= axes or not all(isinstance(size, int) and size > 0 for size in a["normalized_shape"]):
        return None
    return Call(operators.layer_norm, (a["input"], a["weight"], a["bias"]), {"axes": axes, "eps": a["eps"]})


@rule(aten.softmax.int, aten._softmax.default)
def _softmax(a: Arguments) -> Call | None:
    last = a["dim"] % max(1, rank(a["self"])) == rank(a["self"]) - 1
    if not last or rank(a["self"]) < 2 or a.get("dtype") is not None or a.get("half_to_float"):
        return None
    return Call(operators.softmax, (a["self"],))


@rule(aten.scaled_dot_product_attention.default)
def _attention(a: Arguments) -> Call | None:
    query, key, value, mask = (a[name] for name in ("query", "key", "value", "attn_mask"))
    plain = not a["is_causal"] and not a["enable_gqa"] and a["dropout_p"] == 0
    sizes = [shape(t) for t in (query, key, value)]
    if not plain or any(s is None or len(s) != 4 for s in sizes):
        return None
    if any(not isinstance(size, int) or size == 0 for s in sizes for size in s[1:]):
        return None
    if not all(same(s[:2], sizes[0][:2]) for s in sizes):
        return None
    if mask is not None and (dtype(mask) != dtype(query) or rank(mask) not in (2, 4)):
        return None
    scale = a["scale"]
    factor = float(scale) if scale is not None else sizes[0][3] ** -0.5
    return Call(operators.attention, (query, key, value, mask), {"factor": factor})
