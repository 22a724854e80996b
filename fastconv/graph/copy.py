"""Steps that copy a view into the order that a kernel reads."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from fastconv.graph import views
from fastconv.graph.values import Value
from fastconv.graph.views import View

if TYPE_CHECKING:
    from fastconv.graph.lower import Lowering

AXES = 4  # that one step copies


def emit(low: Lowering, view: View, out: Value) -> None:
    """The elements of a view, in torch's order, into a whole buffer."""
    sizes, strides = views.runs(view)
    _, _, first = view.place
    is_whole = first == 0 and view.tensor.numel() == view.whole
    if is_whole and _is_turned(sizes, strides):
        _turn(low, view, sizes, out)
    elif is_whole and len(sizes) > AXES:
        emit(low, _nearer(low, view, sizes, strides), out)
    else:
        _copy(low, view, sizes, strides, out)


def _is_turned(sizes: list[int], strides: list[int]) -> bool:
    """Whether matrices are transposed, one by one."""
    if len(sizes) == 2:
        sizes, strides = [1, *sizes], [sizes[0] * sizes[1], *strides]
    return len(sizes) == 3 and strides == [sizes[1] * sizes[2], 1, sizes[1]]


def _turn(low: Lowering, view: View, sizes: list[int], out: Value) -> None:
    """By the few channels beside each other: of the result, or of the source."""
    *images, pixels, channels = sizes
    n = images[0] if images else 1
    if channels <= pixels:
        source = Value(view.buffer, n, channels, 1, pixels, view.dtype, "nchw")
    else:
        source = Value(view.buffer, n, pixels, 1, channels, view.dtype)
    target = replace(source, buffer=out.buffer, layout="nhwc" if source.layout == "nchw" else "nchw")
    low.emit(f"reorder2d_{source.head}_{view.dtype}{source.layout}", {"x": source}, target)


def _nearer(low: Lowering, view: View, sizes: list[int], strides: list[int]) -> View:
    """The same elements in another buffer, where two neighbouring groups of axes have changed places, so that the first
    axes that do not lie in order do."""
    lying = sorted(range(len(sizes)), key=lambda axis: -strides[axis])
    start = next(place for place, axis in enumerate(lying) if axis != place)
    second = end = lying.index(start)
    while end < len(lying) and lying[end] == start + end - second:
        end += 1
    groups = (lying[:start], lying[start:second], lying[second:end], lying[end:])
    lengths = [prod(sizes[axis] for axis in group) for group in groups]
    between = low.fresh((view.whole, 1), view.dtype)
    emit(low, views.dense(view.buffer, view.dtype, lengths).through(lambda t: t.permute(0, 2, 1, 3)), between)
    order = [*groups[0], *groups[2], *groups[1], *groups[3]]
    dense = views.dense(between.buffer, view.dtype, [sizes[axis] for axis in order])
    return dense.through(lambda t: t.permute([order.index(axis) for axis in range(len(order))]))


def _copy(low: Lowering, view: View, sizes: list[int], strides: list[int], out: Value) -> None:
    """Four axes at a time: of more, each place of the first ones is a step."""
    outer, sizes = sizes[:-AXES], [1] * (AXES - len(sizes)) + sizes[-AXES:]
    outer_strides, strides = strides[:-AXES], [0] * (AXES - len(strides)) + strides[-AXES:]
    n, h, w, c = sizes
    by_step = [strides[0], strides[3], strides[1], strides[2]]
    problem = f"copy2d_n{n}c{c}h{h}w{w}_{view.dtype}nhwc"
    source, target = Value(view.buffer, 1, view.whole, 1, 1, view.dtype), replace(out, n=n, c=c, h=h, w=w)
    for number, place in enumerate(product(*map(range, outer))):
        first = view.place[2] + sum(i * stride for i, stride in zip(place, outer_strides, strict=True))
        strided = {"x": ((n, c, h, w), tuple(by_step), first)}
        if outer:
            strided["out"] = ((n, c, h, w), (h * w * c, 1, w * c, c), number * n * h * w * c)
        low.emit(problem, {"x": source}, target, strided=strided)
