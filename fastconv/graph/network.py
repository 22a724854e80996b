"""A captured model between the passes: its graph, and the tensors that the graph's get_attr nodes name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fastconv.graph.weights import Recipe, Weights

if TYPE_CHECKING:
    from fastconv.graph.partition import Part


class Network:
    """graph: a torch.fx graph of :mod:`fastconv.graph.operators` and of what stayed PyTorch's.

    tensors: by the names of get_attr nodes; what passes derive from them has names of its own.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, Tensor]):
        self.graph = graph
        self.tensors = Weights(tensors)

    def tensor(self, node: Any) -> Tensor | None:
        """The constant a node stands for, or None."""
        return self.tensors[node.target] if self.is_constant(node) else None

    def is_constant(self, node: Any) -> bool:
        """Whether a node stands for a constant."""
        return isinstance(node, fx.Node) and node.op == "get_attr"

    def constant(self, before: fx.Node, value: Tensor | Recipe, like: str) -> fx.Node:
        """A node for a new constant, or for how it is made, named after where it comes from."""
        name, number = like, 0
        while name in self.tensors:
            number += 1
            name = f"{like}.{number}"
        self.tensors[name] = value
        with self.graph.inserting_before(before):
            node = self.graph.create_node("get_attr", name)
        node.meta = {"val": self.tensors.like(name)}
        return node

    def replace(
        self, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> fx.Node:
        """Puts a call in the place of a node."""
        with self.graph.inserting_before(node):
            call = self.graph.call_function(function, args, options)
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)
        return call

    def calls(self, *functions: Callable[..., Any]) -> list[fx.Node]:
        """The nodes that call one of the functions, in order."""
        return [node for node in self.graph.nodes if node.op == "call_function" and node.target in functions]

    def drop_unused(self) -> None:
        """Removes nodes without users, and tensors without nodes."""
        for node in reversed(list(self.graph.nodes)):
            if node.op in ("call_function", "get_attr") and not node.users and not node.is_impure():
                self.graph.erase_node(node)
        used = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        self.tensors = self.tensors.only(used)

    def run(self, *inputs: Tensor) -> Any:
        """The graph's results, in PyTorch's operators: what any plan of it must give."""
        values = dict(zip([n for n in self.graph.nodes if n.op == "placeholder"], inputs, strict=True))
        with torch.no_grad():
            self.evaluate(self.graph.nodes, values)
        return self.results(values)

    def run_part(self, part: Part, inputs: Sequence[Tensor]) -> list[Tensor]:
        """A part's results in PyTorch's operators."""
        values = dict(zip(part.inputs, inputs, strict=True))
        self.evaluate(part.nodes, values)
        return [values[node] for node in part.outputs]

    def evaluate(self, nodes: Iterable[fx.Node], values: dict[fx.Node, Any]) -> None:
        """Runs calls one by one in PyTorch and adds their results to ``values``."""
        for node in nodes:
            if node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), partial(self._value, values))
                values[node] = node.target(*args, **kwargs)

    @property
    def returned(self) -> Any:
        """The nodes that the graph returns, as they nest in it."""
        return next(node for node in reversed(self.graph.nodes) if node.op == "output").args[0]

    def results(self, values: dict[fx.Node, Any]) -> Any:
        """What the graph returns."""
        return fx.map_arg(self.returned, partial(self._value, values))

    def _value(self, values: dict[fx.Node, Any], node: fx.Node) -> Any:
        return self.tensors[node.target] if node.op == "get_attr" else values[node]
