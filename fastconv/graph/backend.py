"""``torch.compile(model, backend="fastconv")``: each graph that TorchDynamo hands over becomes a plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastconv.graph.capture import CaptureError
from fastconv.graph.optimized import Optimized
from fastconv.graph.select import Policy


def fastconv(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The callable that TorchDynamo runs in a graph's place.

    A graph whose result needs a gradient stays PyTorch's, and so does one that cannot be captured, with a warning.
    Weights are packed; the plan is made anew when a call brings others, or the same that were written meanwhile.
    options: ``{"winograd": bool, "tune": bool}``, as :func:`fastconv.optimize` has them. TypeError for any other.
    """
    known = {field.name for field in fields(Policy)}
    if unknown := (options or {}).keys() - known:
        raise TypeError(f"The fastconv backend has no option {min(unknown)!r}; it has {' and '.join(sorted(known))}.")
    policy = Policy(**(options or {}))
    needs_gradient = any(isinstance(t, Tensor) and t.requires_grad for t in example_inputs)
    if torch.is_grad_enabled() and needs_gradient:
        return graph_module.forward
    try:
        return _Compiled(graph_module, example_inputs, policy)
    except CaptureError as error:
        warnings.warn(f"fastconv leaves a graph to PyTorch: {error}", stacklevel=2)
        return graph_module.forward


class _Compiled:
    """A plan for the graph with the parameters and buffers that stand among its inputs."""

    def __init__(self, graph_module: fx.GraphModule, example_inputs: Sequence[Any], policy: Policy):
        self._graph_module, self._policy = graph_module, policy
        _measure_sizes(graph_module)
        places = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        pairs = list(enumerate(zip(places, example_inputs, strict=True)))
        self._fixed = [i for i, (node, value) in pairs if _is_fixed(node, value)]
        self._free = [i for i, (_, value) in pairs if isinstance(value, Tensor) and i not in self._fixed]
        self._make(example_inputs)

    def _make(self, inputs: Sequence[Any]) -> None:
        self._bound = _Bound(self._graph_module, {i: inputs[i] for i in self._fixed}, self._free)
        with torch._guards.tracing(None):  # sizes of this capture are none of the caller's guards
            self._plan = Optimized(self._bound, tuple(inputs[i] for i in self._free), self._policy)

    def __call__(self, *inputs: Any) -> Any:
        if any(inputs[i] is not t for i, t in self._bound.fixed().items()) or self._plan.changed():
            self._make(inputs)
        return self._plan(*(inputs[i] for i in self._free))


class _Bound(nn.Module):
    """The graph with some of its inputs given."""

    def __init__(self, graph_module: fx.GraphModule, fixed: dict[int, Tensor], free: list[int]):
        super().__init__()
        self.run, self._free, self._numbers = graph_module, free, list(fixed)
        for i, tensor in fixed.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"input{i}", tensor)
            else:
                self.register_buffer(f"input{i}", tensor)

    def fixed(self) -> dict[int, Tensor]:
        return {i: getattr(self, f"input{i}") for i in self._numbers}

    def forward(self, *free: Tensor) -> Any:
        values = self.fixed() | dict(zip(self._free, free, strict=True))
        count = sum(node.op == "placeholder" for node in self.run.graph.nodes)
        return self.run(*(values.get(i, 0) for i in range(count)))  # what is left are sizes that nobody reads


def _is_fixed(node: fx.Node, value: Any) -> bool:
    """Whether an input is a parameter or buffer of the compiled module."""
    static = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and static is not None)


def _measure_sizes(graph_module: fx.GraphModule) -> None:
    """Lets the graph read sizes from its tensors, not from inputs that hold them."""
    graph = graph_module.graph
    places = [node for node in graph.nodes if node.op == "placeholder"]
    symbols = {}
    for node in places:
        value = node.meta.get("example_value")
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            symbols.setdefault(str(size), (node, axis))
    for node in places:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymInt) and node.users and str(value) in symbols:
            with graph.inserting_after(places[-1]):
                size = graph.call_method("size", symbols[str(value)])
            node.replace_all_uses_with(size)
    graph_module.recompile()
