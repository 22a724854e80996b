"""From a graph of operators to the steps of a program: problems, kernels, and where every operand lies.

Inside a program activations are channels_last, or rows of features. What a view operator makes of one stays a view, and
is copied where a kernel reads it in another order than it lies. A concatenation is a buffer, and what flows into it is
written to its channels in place where the kernel can; a concatenation that begins another one (as each layer's input
does in a DenseNet) is a slice of that one's buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from fastconv._native import C
from fastconv.graph import copy, memory, slices, strips, views
from fastconv.graph.network import Network
from fastconv.graph.partition import Part
from fastconv.graph.rules import LOWER
from fastconv.graph.select import NoKernel, Selection
from fastconv.graph.values import DTYPES, Buffer, Filter, Lowered, Step, Strided, Value, value_of
from fastconv.graph.views import View
from fastconv.problem import Problem


def lower(
    network: Network,
    part: Part,
    examples: Sequence[Tensor],
    select: Callable[[Problem], Selection],
    constant: Callable[[Selection, Filter], Tensor],
) -> Lowered:
    """The program of a part for inputs of the examples' shapes and strides.

    select: chooses a kernel. constant: a filter as the selection's kernel reads it.
    """
    return Lowering(network, part, examples, select, constant).result()


class Lowering:
    """The state of one lowering. The rules (:mod:`fastconv.graph.rules`) see it as ``low``."""

    def __init__(self, network, part, examples, select, constant):
        self.network, self.nodes = network, part.nodes
        self.inputs, self.outputs, self.examples = part.inputs, part.outputs, examples
        self.select, self.constant = select, constant
        self.steps: list[Step] = []
        self.origin = "input"  # the captured node that steps are made for
        self.made: dict[fx.Node, Value | View] = {}
        self.ordered: dict[Any, Value] = {}  # copies of views, as maps or rows
        self.shapes = _shapes(network, part.nodes, part.inputs, examples)
        self.channels_last = any(_is_channels_last(t) for t in examples if t.ndim == 4)
        self.slices = slices.find(part.nodes, self.shapes, set(part.outputs))
        self.concats: dict[fx.Node, Value] = {}  # the outermost concatenations
        self.copies: dict[Value, Value] = {}  # dense copies of slices
        self.by_pixels: set[fx.Node] = set()  # flattened maps that lie in the order of their pixels

    def result(self) -> Lowered:
        """Steps in stages, with memory."""
        _, inputs, outputs = self.run()
        return self._place(inputs, outputs)

    def run(self) -> tuple[list[Step], list[Any], list[Any]]:
        """The steps, and what enters and leaves them (C.Border)."""
        borders = [C.Border(list(t.shape), list(t.stride()), t.dtype) for t in self.examples]
        for number, (node, example) in enumerate(zip(self.inputs, self.examples, strict=True)):
            self.made[node] = self._input(number, example)
        for node in self.nodes:
            self.origin = node.meta.get("name", node.name)
            self.made[node] = LOWER[node.target](self, node, *node.args, **node.kwargs)
        self.origin = "output"
        results = [self._output(number, node) for number, node in enumerate(self.outputs)]
        return self.steps, borders, results

    # --- values -----------------------------------------------------------------------------------------------------

    def _input(self, number: int, example: Tensor) -> Value | View:
        value = value_of(example.shape, DTYPES[example.dtype], Buffer("input", number))
        if example.ndim != 4 or value.one_pixel or _is_channels_last(example):
            return value
        return views.of(replace(value, layout="nchw"), example.shape)

    def value(self, node: fx.Node) -> Value:
        """A node's result as kernels of maps and rows read it: four axes as channels_last, others as rows."""
        made = self.made[node]
        if isinstance(made, Value):
            return made
        is_map = made.tensor.dim() == 4
        found = views.as_map(made) if is_map else views.as_rows(made)
        return found or self.in_order(made, is_map)

    def view(self, node: fx.Node) -> View:
        """A node's result as it lies."""
        made = self.made[node]
        return made if isinstance(made, View) else views.of(made, self.shapes[node].shape)

    def rows(self, node: fx.Node, axes: int = 1) -> tuple[Value, list[int]]:
        """A node's result as rows over its last axes, in the order in which its other axes lie; and that order."""
        outer = views.order(self.view(node), axes)
        return self.rows_in(node, outer, axes), outer

    def rows_in(self, node: fx.Node, outer: list[int], axes: int = 1) -> Value:
        """A node's result as rows over its last axes, its other axes in this order."""
        made = views.lying(self.view(node), outer)
        found = views.as_rows(made, axes)
        if found is None:
            found = self.in_order(made, False)
            columns = self.shapes[node].shape[-axes:].numel()
            found = replace(found, n=found.elements // columns, c=columns, h=1, w=1)
        return found

    def ordered_rows(self, node: fx.Node) -> Value:
        """A node's result as rows in torch's order."""
        view = self.view(node)
        return views.as_rows(view) or self.in_order(view, False)

    def together(self, node: fx.Node) -> View:
        """A node's result with the elements of its last axis beside each other."""
        view = self.view(node)
        if view.tensor.stride(-1) == 1 or view.tensor.shape[-1] == 1:
            return view
        return views.dense(self.in_order(view, False).buffer, view.dtype, view.tensor.shape)

    def lies_in_rows(self, node: fx.Node) -> bool:
        """Whether a node's result is no map: its last axis lies innermost, or it has not four axes."""
        made = self.made[node]
        return self.shapes[node].dim() != 4 or (isinstance(made, View) and views.as_map(made) is None)

    def of_rows(self, out: Value, node: fx.Node, outer: list[int]) -> Value | View:
        """Rows as the result of a node whose other axes lie in this order."""
        shape = self.shapes[node].shape
        lying = views.dense(out.buffer, out.dtype, [*(shape[axis] for axis in outer), *shape[len(outer) :]])
        back = [outer.index(axis) for axis in range(len(outer))]
        return views.lying(lying, back)

    def in_order(self, view: View, is_map: bool = False) -> Value:
        """A copy of a view as a map or as rows, made once."""
        key = (view.buffer, view.place, is_map)
        if key not in self.ordered:
            self.ordered[key] = self._copied(view, is_map)
        return self.ordered[key]

    def _copied(self, view: View, is_map: bool, out: Value | None = None) -> Value:
        shape = tuple(view.tensor.shape)
        out = out or self.fresh(shape, view.dtype)
        origin, self.origin = self.origin, view.buffer.where if view.buffer.where == "input" else self.origin
        copy.emit(self, view.through(lambda t: t.permute(0, 2, 3, 1)) if is_map else view, out)
        self.origin = origin
        return out

    def fresh(self, like: torch.Size | tuple[int, ...], dtype: str) -> Value:
        value = value_of(like, dtype, Buffer("arena"))
        value.buffer.block, value.buffer.elements = memory.Block(value.bytes), value.elements
        return value

    def target(self, node: fx.Node) -> Value:
        """Where a node's result goes: its channels of a concatenation, or memory of its own."""
        dtype = DTYPES[self.shapes[node].dtype]
        if node not in self.slices:
            return self.fresh(self.shapes[node].shape, dtype)
        whole, offset = self.slices[node]
        buffer = self.concat(whole)
        return replace(value_of(self.shapes[node].shape, dtype, buffer.buffer), offset=offset, width=buffer.c)

    def concat(self, node: fx.Node) -> Value:
        if node not in self.concats:
            self.concats[node] = self.fresh(self.shapes[node].shape, DTYPES[self.shapes[node].dtype])
        return self.concats[node]

    def compact(self, value: Value) -> Value:
        """A value without gaps between its pixels: a copy of one that is a slice, made once."""
        if not value.width:
            return value
        if value not in self.copies:
            out = replace(self.fresh((value.n, value.c, value.h, value.w), value.dtype), dtype=value.dtype)
            self.map2d(value, out)
            self.copies[value] = out
        return self.copies[value]

    def dense(self, node: fx.Node) -> Value:
        return self.compact(self.value(node))

    def reordered(self, value: Value) -> Value:
        """A dense value in the other layout."""
        other = "nhwc" if value.layout == "nchw" else "nchw"
        out = replace(self.fresh((value.n, value.c, value.h, value.w), value.dtype), layout=other)
        self.emit(f"reorder2d_{value.head}_{value.dtype}{value.layout}", {"x": value}, out)
        return out

    def _output(self, number: int, node: fx.Node) -> Any:
        """Brings a node's value into the tensor that is handed out."""
        shape = self.shapes[node]
        nhwc = len(shape.shape) == 4 and self.channels_last
        format = torch.channels_last if nhwc else torch.contiguous_format
        strides = torch.empty(shape.shape, device="meta").contiguous(memory_format=format).stride()
        out = value_of(shape.shape, DTYPES[shape.dtype], Buffer("output", number))
        out.buffer.elements = out.elements
        value = self.value(node) if nhwc or len(shape.shape) != 4 or out.one_pixel else views.as_rows(self.view(node))
        if value is None:
            self._copied(self.view(node), False, out)
        elif not self._redirect(value, out):
            self.map2d(value, replace(out, n=value.n, c=value.c, h=value.h, w=value.w))
        return C.Border(list(shape.shape), list(strides), shape.dtype)

    def _redirect(self, value: Value, out: Value) -> bool:
        """Lets the one step that wrote a value write it where it is handed out."""
        writers = [step for step in self.steps if step.out.buffer is value.buffer]
        if value.width or value.buffer.where != "arena" or len(writers) != 1 or writers[0].out.width:
            return False
        value.buffer.where, value.buffer.number, value.buffer.block = "output", out.buffer.number, None
        return True

    # --- steps ------------------------------------------------------------------------------------------------------

    def emit(self, problem: str, reads: dict[str, Value | None], out: Value, **rest: Any) -> None:
        """Appends a step that runs a problem. A slice that no kernel reads or writes is copied from or to its place."""
        reads = {name: value for name, value in reads.items() if value is not None}
        source = "x" if "x" in reads else "y"
        if source in reads:  # else it is a constant
            if reads[source].width and not self._accepts(problem + _slice_words("in", reads[source])):
                reads[source] = self.compact(reads[source])
            problem += _slice_words("in", reads[source])
        if out.width and not self._accepts(problem + _slice_words("out", out)):
            whole = self.fresh((out.n, out.c, out.h, out.w), out.dtype)
            self._append(problem, reads, whole, **rest)
            self.map2d(whole, out)
        else:
            self._append(problem + _slice_words("out", out), reads, out, **rest)

    def _accepts(self, problem: str) -> bool:
        try:
            self.select(Problem(problem))
        except NoKernel:
            return False
        return True

    def _append(
        self,
        problem: str,
        reads: dict[str, Value],
        out: Value,
        *,
        filter: Filter | None = None,
        constants: dict[str, Tensor] | None = None,
        numbers: dict[str, Any] | None = None,
        strided: dict[str, Strided] | None = None,
    ) -> None:
        selection, constants = self.select(Problem(problem)), constants or {}
        if filter is not None:
            constants |= {"packed" if selection.problem.packed else "w": self.constant(selection, filter)}
        self.steps.append(Step(selection, reads, out, constants, self.origin, numbers or {}, strided or {}))

    def map2d(
        self, x: Value, out: Value, scale: Value | None = None, residual: Value | None = None, words: str = ""
    ) -> None:
        words = ("_scale" if scale else "") + ("_res" if residual else "") + words
        self.emit(f"map2d_{x.head}_{x.dtype}nhwc{words}", {"x": x, "scale": scale, "residual": residual}, out)

    # --- memory -----------------------------------------------------------------------------------------------------

    def _place(self, inputs: list[Any], outputs: list[Any]) -> Lowered:
        threads = torch.get_num_threads()
        stages = strips.join(self.steps, threads)
        blocks, workspaces = [], []
        for number, stage in enumerate(stages):
            for value in stage.values:
                if (block := value.buffer.block) is not None:
                    block.live(number)
                    blocks.append(block)
            workspaces.append(memory.Block(stage.workspace_bytes(threads), number, number))
        arena = memory.place(dict.fromkeys([*blocks, *workspaces]))
        results = memory.alive_at_once(self.nodes, lambda node: self.shapes[node].nbytes, self.outputs)
        return Lowered(stages, workspaces, inputs, outputs, arena, results, threads)


def _slice_words(side: str, value: Value) -> str:
    return f"_{side}{value.offset}of{value.width}" if value.width else ""


def _shapes(network, nodes, inputs, examples) -> dict[fx.Node, Any]:
    """Each node's result for inputs like the examples, as a tensor without data."""
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        values = {
            node: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)  # on no device: shapes are the same on all
            for node, t in zip(inputs, examples, strict=True)
        }

        def value(node: fx.Node) -> Any:
            if node not in values and node.op == "get_attr":
                like = network.tensors.like(node.target)
                values[node] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
            return values[node]

        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            values[node] = node.target(*args, **kwargs)
    return values


def _is_channels_last(tensor: Tensor) -> bool:
    """As torch decides for a dense tensor that could be both: by its strides."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
