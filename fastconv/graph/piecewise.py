"""A model that torch.export cannot follow: its own Python, with plans in the places of those submodules that can be
followed.

The example says how submodules are called: each is tried from the outermost inwards, with the very inputs it got, and
one that refuses is opened and its children tried. What is left is the model's own code on PyTorch's operators.
"""

from __future__ import annotations

import copy
import threading
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from fastconv.graph.capture import CaptureError, Inputs
from fastconv.graph.inference import Inference
from fastconv.graph.optimized import Optimized
from fastconv.graph.report import Report, StageTime
from fastconv.graph.select import Policy

MOST_PLANS = 8  # of one submodule, each for inputs of other sizes; after those PyTorch runs it

_stages: ContextVar[list[StageTime] | None] = ContextVar("stages of the plans of a model in pieces", default=None)


@dataclass(frozen=True)
class Left:
    """A submodule that stays PyTorch's, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PiecesReport:
    """pieces: the reports of the submodules that run as plans, by name. left: those that do not, without the ones that
    hold a plan."""

    refusal: str
    pieces: dict[str, tuple[Report, ...]]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [self.refusal, f"{len(self.pieces)} of its submodules are plans, called by the model's own Python:"]
        for name, reports in self.pieces.items():
            lines += [f"{name}: {line}" for report in reports for line in str(report).splitlines()]
        lines += [f"{left.name} stays PyTorch's: {left.reason}" for left in self.left]
        return "\n".join(lines)


class Piecewise(Inference):
    """A model's inference, with plans for some of its submodules. It is called like the model.

    str() says why the whole is no plan, which submodules are, and what stays PyTorch's. The source model is kept for
    ``refresh()``, and is not changed.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        policy: Policy,
        dtype: torch.dtype | None,
        refusal: CaptureError,
    ):
        super().__init__()
        self._source, self._example, self._policy, self._dtype, self._refusal = [model], args, policy, dtype, refusal
        self.refresh()

    def refresh(self) -> None:
        """Makes the plans anew from the source model as it is now. CaptureError where no submodule can be a plan."""
        model = self._source[0]
        self._left: dict[str, str] = {}
        self.pieces: dict[str, Piece] = {}
        found: dict[nn.Module, Piece | None] = {}
        self._open("", model, found)
        if not self.pieces:
            raise self._refusal
        assembled = _with_pieces(model, {source: piece for source, piece in found.items() if piece is not None})
        self._assembled = [assembled]  # in a list, so that it is no submodule

    def _open(self, path: str, module: nn.Module, found: dict[nn.Module, Piece | None]) -> None:
        """Tries a module's children, and opens those that refuse."""
        try:
            calls = _calls_of_children(module, self._source[0], self._example)
        except Exception as error:  # the model's own, for an example that it does not take
            raise self._refusal from error
        for name, child in module.named_children():
            if child in found or not calls.get(child):
                if child not in found and isinstance(child, nn.ModuleList | nn.ModuleDict):
                    self._open(f"{path}{name}.", child, found)  # called by nobody, but its children are
                continue
            found[child] = None
            try:
                found[child] = Piece(f"{path}{name}", child, calls[child], self._policy, self._dtype)
                self.pieces[f"{path}{name}"] = found[child]
            except CaptureError as error:
                before = len(self.pieces)
                self._open(f"{path}{name}.", child, found)
                if len(self.pieces) == before:
                    self._left[f"{path}{name}"] = str(error)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, to rounding. RuntimeError where weights changed that a plan was made of."""
        with torch.no_grad():
            return self._assembled[0](*args, **kwargs)

    def timings(self, *args: Any, **kwargs: Any) -> list[StageTime]:
        """As :meth:`Optimized.timings`; all that runs outside of the plans is one stage, the last."""
        stages: list[StageTime] = []
        token, start = _stages.set(stages), perf_counter()
        try:
            self(*args, **kwargs)
        finally:
            _stages.reset(token)
        rest = perf_counter() - start - sum(stage.seconds for stage in stages)
        return [*stages, StageTime(("the model's own Python",), (), max(rest, 0.0))]

    def changed(self) -> str | None:
        """The name of a tensor of the source model that a plan was made of and that changed since, or None."""
        for name, piece in self.pieces.items():
            for plan in piece.plans:
                if tensor := plan.changed():
                    return f"{name}.{tensor}"
        return None

    def save(self, path: Any) -> None:
        """RuntimeError: the model's own Python is part of this plan, and a file of a plan holds no code."""
        raise RuntimeError(
            f"A plan in pieces cannot be saved: {type(self._source[0]).__name__} runs code of its own between "
            f"{', '.join(self.pieces)}. Save the model's weights, and optimize it after loading."
        )

    @property
    def report(self) -> PiecesReport:
        """Which submodules are plans, what stays PyTorch's, and why."""
        pieces = {name: tuple(plan.report for plan in piece.plans) for name, piece in self.pieces.items()}
        return PiecesReport(str(self._refusal), pieces, tuple(Left(*item) for item in self._left.items()))

    def extra_repr(self) -> str:
        return str(self.report)


class Piece(Inference):
    """A submodule as plans, one for each kind of inputs it met. What is asked of it besides a call, the source answers.

    Inputs of other sizes get another plan at their first call, until there are MOST_PLANS.
    """

    def __init__(self, name: str, source: nn.Module, calls: list[Inputs], policy: Policy, dtype: torch.dtype | None):
        super().__init__()
        self._name, self._original, self._policy, self._dtype = name, [source], policy, dtype
        self.plans: tuple[Optimized, ...] = ()
        self._lock, self._full = threading.Lock(), False
        for inputs in calls:
            if self._plan_for(*inputs) is None and len(self.plans) < MOST_PLANS:
                self._add(*inputs)
        if not any(plan.report.planned for plan in self.plans):
            raise CaptureError("It holds no layer that a plan runs.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        plan = self._plan_for(args, kwargs) or self._another(args, kwargs)
        if plan is None:
            return self._original[0](*args, **kwargs)
        if (stages := _stages.get()) is None:
            return plan(*args, **kwargs)
        results, taken = plan.timed(*args, **kwargs)
        stages += taken
        return results

    def _plan_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Optimized | None:
        return next((plan for plan in self.plans if plan.signature.takes(args, kwargs)), None)

    def _another(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Optimized | None:
        with self._lock:
            if (found := self._plan_for(args, kwargs)) or self._full:
                return found
            if len(self.plans) < MOST_PLANS:
                try:
                    return self._add(args, kwargs)
                except CaptureError as error:
                    reason = str(error)
            else:
                reason = f"there are plans for {MOST_PLANS} other sizes already."
            self._full = True
            warnings.warn(f"PyTorch runs {self._name!r} for inputs of new sizes: {reason}", stacklevel=3)
            return None

    def _add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Optimized:
        plan = Optimized(self._original[0], args, self._policy, self._dtype, kwargs)
        self.plans = (*self.plans, plan)
        return plan

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_original" not in self.__dict__:  # while a copy is being made
                raise
            return getattr(self._original[0], name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved, _lock=threading.Lock())


def _calls_of_children(module: nn.Module, model: nn.Module, args: tuple[Any, ...]) -> dict[nn.Module, list[Inputs]]:
    """What the children of one of a model's modules are called with when the model runs."""
    calls: dict[nn.Module, list[Inputs]] = {}

    def record(child: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(child, []).append((args, kwargs))

    handles = [child.register_forward_pre_hook(record, with_kwargs=True) for child in module.children()]
    try:
        with torch.no_grad():
            model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _with_pieces(model: nn.Module, pieces: dict[nn.Module, Piece]) -> nn.Module:
    """The model with pieces in their places. Modules that lead to one are copied, their tensors and the rest shared."""
    made: dict[nn.Module, nn.Module] = dict(pieces)

    def assembled(module: nn.Module) -> nn.Module:
        if module not in made:
            children = {name: child and assembled(child) for name, child in module._modules.items()}
            if all(children[name] is child for name, child in module._modules.items()):
                made[module] = module
            else:
                made[module] = copy.copy(module)
                made[module]._modules = children
        return made[module]

    return assembled(model)
