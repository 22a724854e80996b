"""A network as a graph whose nodes are its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from torch import fx, nn

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


def whole(function: Callable) -> Callable:
    """A function of tensors, which may decide by their values: it is one node of any graph."""

    @wraps(function)
    def call(*arguments):
        symbols = []
        fx.node.map_aggregate(arguments, lambda a: symbols.append(a) if isinstance(a, fx.Proxy) else a)
        if symbols:
            return symbols[0].tracer.create_proxy("call_function", call, arguments, {})
        return function(*arguments)

    return call


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def layer_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The layer a node calls, or None where it calls a function."""
    return traced.get_submodule(node.target) if node.op == "call_module" else None
