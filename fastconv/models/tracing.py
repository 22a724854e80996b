"""A network as a graph whose nodes are its layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

_LAYER_PACKAGES = ("torch.nn.", "fastconv.nn.")


class _Tracer(fx.Tracer):
    """Keeps torch's layers and ours whole and goes through everything else."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module.__module__.startswith(_LAYER_PACKAGES) and not isinstance(module, nn.Sequential)


def trace(model: nn.Module) -> fx.GraphModule:
    """The model's graph in its present mode, over its own layers and parameters.

    Raises ValueError where the model decides by the values or sizes of its input.
    """
    try:
        graph = _Tracer().trace(model)
    except fx.proxy.TraceError as error:
        raise ValueError(
            f"{type(model).__name__} has no fixed graph of layers, because its forward decides by its input: {error}."
        ) from error
    return fx.GraphModule(model, graph, type(model).__name__)


def inputs_of(node: fx.Node, values: dict[fx.Node, Any]) -> list[fx.Node]:
    """The nodes before `node` whose values are tensors, in the order of its arguments."""
    return [before for before in node.all_input_nodes if isinstance(values.get(before), Tensor)]


def layer_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer a node calls, or None where it calls a function."""
    return traced.get_submodule(node.target) if node.op == "call_module" else None
