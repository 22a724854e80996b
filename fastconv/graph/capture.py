"""From a model to a graph of PyTorch's operators whose parameters are named, with torch.export."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from fastconv.graph import functionalize

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class CaptureError(RuntimeError):
    """No graph could be made of a model; the message says why."""


@dataclass(frozen=True)
class Captured:
    """A model as a graph.

    graph: placeholders for the tensors among the inputs, get_attr nodes named as the model names its tensors.
    tensors: those parameters, buffers and constants; the very ones of the model.
    in_spec, out_spec: how inputs and outputs nest. batched: whether any number of images may come.
    """

    graph: fx.Graph
    tensors: dict[str, Tensor]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    batched: bool


def capture(model: nn.Module, inputs: Inputs) -> Captured:
    """The graph of ``model(*args, **kwargs)`` in inference. Raises CaptureError where torch.export refuses."""
    program, batched = _export(model, inputs)
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise CaptureError(f"The model writes into {changed[0]!r}: call model.eval() and leave its inputs as they are.")
    if any(node.target is torch.ops.aten.as_strided.default for node in program.graph.nodes):
        raise CaptureError("The model reads memory by strides of its own (as_strided), which a plan does not keep.")
    tensors: dict[str, Tensor] = {}
    names = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
    graph, copies = fx.Graph(), {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            name = names[node.name]
            tensors[name] = program.state_dict[name] if name in program.state_dict else program.constants[name]
            copies[node] = graph.create_node("get_attr", name)
            copies[node].meta = {"val": node.meta["val"]}
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return Captured(graph, tensors, program.call_spec.in_spec, program.call_spec.out_spec, batched)


def _export(model: nn.Module, inputs: Inputs) -> tuple[torch.export.ExportedProgram, bool]:
    """With a batch of any size where the model allows it."""
    problems = []
    for batched in (True, False):
        args, kwargs = _doubled(inputs) if batched else inputs
        shapes = _any_batch(model.forward, (args, kwargs)) if batched else None
        if batched and shapes is None:
            continue
        try:
            said = io.StringIO()  # torch prints the whole graph of a model that it gives up
            with torch.no_grad(), contextlib.redirect_stderr(said):
                program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
            sys.stderr.write(said.getvalue())
            if batched and _counts_images(program):
                continue
            return functionalize.without_writes(program), batched
        except Exception as error:  # torch.export raises what it likes
            problems.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    raise CaptureError(f"torch.export cannot follow {type(model).__name__}. {problems[-1]}")


def _counts_images(program: torch.export.ExportedProgram) -> bool:
    """Whether the model's Python counts images, so that torch.export took their number for a constant after all."""
    names = program.graph_signature.user_inputs
    values = (node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in names)
    return any(isinstance(value, Tensor) and is_concrete_int(value.shape[0]) for value in values)


def _doubled(inputs: Inputs) -> Inputs:
    """Single images twice: torch.export takes a size of one for a constant."""

    def double(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1 else value

    return pytree.tree_map(double, inputs)


def _any_batch(forward: Any, inputs: Inputs) -> Any:
    """Free first sizes for images of one batch; None where the inputs have no batch in common."""
    tensors = [value for value in pytree.tree_leaves(inputs) if isinstance(value, Tensor)]
    sizes = {t.shape[0] if t.ndim == 4 else None for t in tensors}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        return None
    args, kwargs = pytree.tree_map(lambda v: {0: Dim.AUTO} if isinstance(v, Tensor) else None, inputs)
    return inspect.signature(forward).bind(*args, **kwargs).arguments
