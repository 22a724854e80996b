"""A model's inference as plans, called like the model: what ``fastconv.optimize`` returns."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fastconv import settings
from fastconv._native import C
from fastconv.graph import partition, passes, state, translate_own, translate_rows  # noqa: F401
from fastconv.graph.capture import Captured, CaptureError, capture
from fastconv.graph.cast import in_dtype
from fastconv.graph.device_plan import DevicePlan
from fastconv.graph.inference import Inference
from fastconv.graph.network import Network
from fastconv.graph.plan import Plan
from fastconv.graph.report import Report, StageTime
from fastconv.graph.select import Policy
from fastconv.graph.signature import Signature
from fastconv.graph.stale import Watch
from fastconv.graph.translate import translate


class Optimized(Inference):
    """A model's inference as plans, with what no plan runs left to PyTorch between them.

    str() is a report: what was captured, how many plans, and which operators stayed PyTorch's. The source model is kept
    for ``refresh()`` and is no submodule: a plan has no parameters, cannot be trained, and does not move.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        policy: Policy,
        dtype: torch.dtype | None = None,
        kwargs: dict[str, Any] | None = None,
    ):
        super().__init__()
        self._source: list[nn.Module] = [model]  # in a list, so that it is no submodule
        self._example, self.policy, self._dtype = (args, kwargs or {}), policy, dtype
        self.refresh()

    def refresh(self) -> None:
        """Makes the plans anew from the source model as it is now. RuntimeError for a plan that was loaded."""
        if not self._source:
            raise RuntimeError("refresh: this plan was loaded from a file or copied, and has no source model.")
        source = self._source[0]
        model = source if self._dtype is None else in_dtype(source, self._dtype)
        self._plan(capture(model, self._example))
        self._watch = Watch(source, [n for n in self._watched if n in self._held_by_source()])

    def _held_by_source(self) -> set[str]:
        source = self._source[0]
        return {name for name, _ in (*source.named_parameters(), *source.named_buffers())}

    def _plan(self, captured: Captured) -> None:
        self.signature = Signature.of(captured)
        self._watched = list(captured.tensors)
        translate(captured.graph)
        if layer := partition.sized_by_values(captured.graph):
            model = type(self._source[0]).__name__
            what = layer.target.__name__
            raise CaptureError(f"{model} is no plan as a whole: the sizes of a {what} in it depend on values.")
        self._arrange(Network(captured.graph, captured.tensors))

    def _arrange(self, network: Network, finished: bool = False) -> None:
        if not finished:
            passes.run(network)
        self.network = network
        self.parts = partition.partition(network)
        arenas = C.Arenas()  # parts run one after another
        device = network.tensors.device
        self.signature = self.signature.on(device.type)

        self.units: list[Plan | DevicePlan | partition.Part] = [
            _plan(network, part, self.policy, arenas, device) if part.planned else part for part in self.parts
        ]
        network.tensors.keep(
            node.target for part in self.parts if not part.planned for node in part.inputs if network.is_constant(node)
        )
        self._placeholders = [node for node in network.graph.nodes if node.op == "placeholder"]
        self._repeat: Any = None
        self._order = self._places_of_results()

    # --- running ----------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, to rounding. ValueError or TypeError for inputs of other sizes, dtypes or devices.
        Autocast does not reach into a plan: it computes in the dtype it was made for.
        """
        if self._repeat is not None and not kwargs:
            results = self._repeat(args, settings.current())
            if results is not None:
                return self._nested(results)
        self._must_be_current()
        environment = self._environment(args, kwargs)
        with torch.no_grad():
            for unit in self.units:
                if not isinstance(unit, partition.Part):
                    environment.update(zip(unit.part.outputs, unit(_inputs(unit, environment)), strict=True))
                else:
                    self.network.evaluate(unit.nodes, environment)
        self._repeat = None if kwargs else self._repeated(args)
        return self._returned(environment)

    def _repeated(self, args: tuple[Any, ...]) -> Any:
        """What runs the next call if it is like this one: where a whole network is one plan of the arguments alone."""
        whole = len(self.units) == 1 and isinstance(self.units[0], Plan) and self._order is not None
        if not whole or list(self.units[0].part.inputs) != self._placeholders or len(args) != self.signature.arguments:
            return None
        if any(type(value) is not Tensor or value is not _dense(value) or value.numel() == 0 for value in args):
            return None
        watched = (None, 0) if self._watch is None else (self._watch.fingerprint, self._watch.seen)
        return C.Repeat(self.units[0].program(args), settings.current(), *watched)

    def _places_of_results(self) -> list[int] | None:
        """Which of the first plan's results each of the network's is; None where some come from elsewhere."""
        made = self.parts[0].outputs if len(self.parts) == 1 else ()
        returned = self.network.returned
        if not all(isinstance(node, fx.Node) and node in made for node in returned):
            return None
        return [made.index(node) for node in returned]

    def _nested(self, results: list[Tensor]) -> Any:
        """A plan's results as the model returns them."""
        spec = self.signature.out_spec
        values = [results[i] for i in self._order]
        return values[0] if spec.is_leaf() else pytree.tree_unflatten(values, spec)

    def timings(self, *args: Any, **kwargs: Any) -> list[StageTime]:
        """Runs once, like a call, and gives the seconds of each stage in order; what PyTorch runs between plans is one
        stage a part. Call it a few times and take medians: the first runs find nothing in the caches.
        """
        return self.timed(*args, **kwargs)[1]

    def timed(self, *args: Any, **kwargs: Any) -> tuple[Any, list[StageTime]]:
        """What a call returns, and the stages' :meth:`timings`."""
        self._must_be_current()
        environment, times = self._environment(args, kwargs), []
        with torch.no_grad():
            for unit in self.units:
                start = perf_counter()
                if not isinstance(unit, partition.Part):
                    results, stages = unit.timed(_inputs(unit, environment))
                    environment.update(zip(unit.part.outputs, results, strict=True))
                    times += stages
                else:
                    self.network.evaluate(unit.nodes, environment)
                    times.append(StageTime(tuple(node.name for node in unit.nodes), (), perf_counter() - start))
        return self._returned(environment), times

    def _must_be_current(self) -> None:
        if name := self.changed():
            raise RuntimeError(f"The model's {name!r} changed after the plan was made: call refresh() on the plan.")

    def _returned(self, environment: dict[fx.Node, Any]) -> Any:
        return pytree.tree_unflatten(self.network.results(environment), self.signature.out_spec)

    def _environment(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[fx.Node, Any]:
        values = self.signature.check(args, kwargs)
        return dict(zip(self._placeholders, values, strict=True))

    def changed(self) -> str | None:
        """The name of a tensor of the source model that is not what the plan was made of, or None."""
        return None if self._watch is None else self._watch.changed()

    # --- copies and files -------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        self._must_be_current()
        return state.of(self)

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__init__()
        self._source, self._example, self._watch = [], None, None
        network, self.signature, self.policy = state.restore(saved)
        self._watched = []
        self._arrange(network, finished=True)

    def save(self, path: Any) -> None:
        """Writes the plan's graph and weights to a safetensors file; it holds no code and no machine's packed form."""
        self._must_be_current()
        state.save(self, path)

    # --- what it says of itself -------------------------------------------------------------------------------------

    @property
    def report(self) -> Report:
        """What was captured, what was planned, what stayed PyTorch's."""
        return Report.of(self)

    def extra_repr(self) -> str:
        return str(self.report)


def load_plan(path: Any) -> Optimized:
    """The plan that :meth:`Optimized.save` wrote. Kernels are chosen, and filters packed, for this machine.

    The file is read where a filter is packed, and must stay as it is while the plan lives; it may be deleted, or
    another put in its place under its name. Raises ValueError for a file that is damaged or holds no plan.
    """
    plan = Optimized.__new__(Optimized)
    plan.__setstate__(state.read(path))
    return plan


def _plan(
    network: Network, part: partition.Part, policy: Policy, arenas: Any, device: torch.device
) -> Plan | DevicePlan:
    if device.type == "cpu":
        return Plan(network, part, policy, arenas)
    return DevicePlan(network, part, device)


def _inputs(plan: Plan | DevicePlan, environment: dict[fx.Node, Any]) -> list[Any]:
    return [_dense(environment[node]) for node in plan.part.inputs]


def _dense(value: Any) -> Any:
    """A tensor as programs read them: dense, in order or as channels_last."""
    if not isinstance(value, Tensor) or value.is_contiguous():
        return value
    if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value
    return value.contiguous()
