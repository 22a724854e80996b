"""Which layer a call belongs to: names for what runs inside a model, and times for every call of a swapped one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastconv.problem import Problem
from fastconv.profiling import trace
from fastconv.profiling.timer import percentile


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


@contextmanager
def layer_names(model: nn.Module) -> Iterator[list[str]]:
    """A stack of the names of the modules that are running, innermost last."""
    running = [""]
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: running.pop() and None, always_call=True))
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class LayerTime:
    """One call of one forward pass: the layer it belongs to ("" for the model itself), and its median seconds."""

    layer: str
    problem: Problem
    kernel: str
    seconds: float


def layer_times(model: nn.Module, *inputs: Tensor, passes: int = 7) -> list[LayerTime]:
    """Times every fastconv call of ``passes`` forward passes in eval mode without gradients, in order of the calls.

    Raises RuntimeError when the passes do not make the same calls.
    """
    runs: list[list[tuple[str, trace.Call]]] = []
    with evaluating(model), layer_names(model) as running, torch.no_grad():
        model(*inputs)
        for _ in range(passes):
            calls: list[tuple[str, trace.Call]] = []
            with trace.report(lambda call, calls=calls: calls.append((running[-1], call))):
                model(*inputs)
            runs.append(calls)
    if len({tuple((layer, call.problem) for layer, call in calls) for calls in runs}) != 1:
        raise RuntimeError("The model does not make the same calls in every pass, so its layers cannot be timed.")
    return [
        LayerTime(layer, call.problem, call.kernel, percentile([run[i][1].seconds for run in runs], 0.5))
        for i, (layer, call) in enumerate(runs[0])
    ]
