"""Runs a model once and records, layer by layer, the problems it met and the kernels that ran them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastconv.profiling.trace import Call, trace

_FORMATS = {"nhwc": torch.channels_last, "nchw": torch.contiguous_format}


@dataclass
class Observation:
    """What one layer did: its calls in order, and the bytes of input it had to copy into the kernel's layout."""

    calls: list[Call] = field(default_factory=list)
    copied_bytes: int = 0
    dtypes: set[torch.dtype] = field(default_factory=set)


def run(model: nn.Module, example: Any) -> Any:
    """Calls the model: a tuple or list holds its arguments, a dict its keyword arguments, else it is the input."""
    if isinstance(example, dict):
        return model(**example)
    if isinstance(example, tuple | list):
        return model(*example)
    return model(example)


def observe(model: nn.Module, example: Any, layers: Mapping[str, nn.Module]) -> dict[str, Observation]:
    """One forward pass of ``model`` in eval mode without gradients, seen from each of ``layers``.

    Every module gets its train/eval mode back. A layer the pass does not reach has an empty observation.
    """
    seen = {name: Observation() for name in layers}
    handles = []
    try:
        with _evaluating(model), torch.no_grad(), trace() as calls:
            for name, layer in layers.items():
                handles += _watch(layer, seen[name], calls)
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _watch(layer: nn.Module, seen: Observation, calls: list[Call]) -> list:
    start = 0

    def before(_, inputs):
        nonlocal start
        start = len(calls)

    def after(_, inputs, __):
        mine = calls[start:]
        seen.calls += mine
        x = next((value for value in inputs if isinstance(value, Tensor)), None)
        if x is not None:
            seen.dtypes.add(x.dtype)
            if mine and x.dim() == 4 and not x.is_contiguous(memory_format=_FORMATS[mine[0].problem.layout]):
                seen.copied_bytes += x.numel() * x.element_size()

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
