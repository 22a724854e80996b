"""``fastconv.optimize``: a model as plans, called like the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastconv import settings
from fastconv._native import C
from fastconv.graph import partition, passes, select
from fastconv.graph.capture import Captured, capture
from fastconv.graph.lower import Lowered, lower
from fastconv.graph.network import Network
from fastconv.graph.translate import translate
from fastconv.kernels import native


def optimize(model: nn.Module, example_inputs: Any, *, winograd: bool = True) -> Optimized:
    """A module of the model's signature that runs its inference as plans.

    model: in eval mode; it is not changed. example_inputs: a tensor, or a tuple of arguments; any batch may follow.
    winograd: whether Winograd kernels may be chosen (see ``fastconv.config``).
    Raises ValueError for a model in training mode and CaptureError where torch.export cannot follow it.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("optimize plans inference, but the model is in training mode: call model.eval() first.")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    return Optimized(model, (args, {}), winograd=winograd)


class Plan:
    """One part of a network as programs: one for each shape and layout of its inputs, made when it first comes."""

    MOST_PROGRAMS = 8

    def __init__(self, network: Network, part: partition.Part, packed: dict[Any, Tensor], winograd: bool):
        self.network, self.part, self.packed, self.winograd = network, part, packed, winograd
        self.programs: dict[Any, Any] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return self.program(inputs).run(inputs)

    def program(self, inputs: Sequence[Tensor]) -> Any:
        key = (torch.get_num_threads(), *((t.shape, t.stride()) for t in inputs))
        found = self.programs.get(key)
        if found is None:
            if len(self.programs) >= self.MOST_PROGRAMS:
                self.programs.pop(next(iter(self.programs)))
            found = self.programs[key] = self.lower(inputs).program()
        return found

    def lower(self, inputs: Sequence[Tensor]) -> Lowered:
        with settings.config(winograd=self.winograd):
            return lower(
                self.network, self.part.nodes, self.part.inputs, self.part.outputs, inputs, select.by_estimate, self.pack
            )

    def pack(self, selection: select.Selection, name: str, filter: Tensor) -> Tensor:
        row = selection.kernel.native
        key = (row, name, C.packed_form(row, selection.problem))
        if key not in self.packed:
            self.packed[key] = native.pack(row, selection.problem, filter)
        return self.packed[key]


class Optimized(nn.Module):
    """A model's inference as plans, with what no plan runs left to PyTorch between them."""

    def __init__(self, model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]], *, winograd: bool):
        super().__init__()
        self.captured: Captured = capture(model, example)
        translate(self.captured.graph)
        self.network = Network(self.captured.graph, self.captured.tensors)
        passes.run(self.network)
        self.parts = partition.partition(self.network)
        packed: dict[Any, Tensor] = {}
        self.units = [Plan(self.network, part, packed, winograd) if part.planned else part for part in self.parts]
        self.placeholders = [node for node in self.network.graph.nodes if node.op == "placeholder"]
        self.results = next(node for node in self.network.graph.nodes if node.op == "output").args[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.captured.in_spec:
            raise TypeError(f"The inputs nest as {spec}, but the plan was made for {self.captured.in_spec}.")
        environment = dict(zip(self.placeholders, values, strict=True))
        with torch.no_grad():
            for unit in self.units:
                if isinstance(unit, Plan):
                    inputs = [environment[node] for node in unit.part.inputs]
                    environment.update(zip(unit.part.outputs, unit(inputs), strict=True))
                else:
                    self._run_in_torch(unit, environment)
        return pytree.tree_unflatten(fx.map_arg(self.results, environment.__getitem__), self.captured.out_spec)

    def _run_in_torch(self, part: partition.Part, environment: dict[fx.Node, Any]) -> None:
        for node in part.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    environment[source] = self.network.tensors[source.target]
            args, kwargs = fx.map_arg((node.args, node.kwargs), environment.__getitem__)
            environment[node] = node.target(*args, **kwargs)
