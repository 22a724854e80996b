"""Sequences that run a convolution, the norm and the activation behind it as one call where no gradient is wanted.

The norm's factor goes into the filter and the rest into the bias, in every call anew, where that is less work than
norming the result; the activation runs on the sums before they are stored. A layer that somebody watches (a hook),
that computes its norm from the batch or whose forward was replaced runs by itself, and so does everything under
tracing, compilation and autograd.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastconv.functional.inference import conv2d_act, conv2d_norm_act
from fastconv.nn.layers import BatchNorm2d, Conv2d

# Activation modules -> their name in ``conv2d_act`` and the parameter alpha.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, float]]] = {
    nn.ReLU: lambda _: ("relu", 0.0),
    nn.ReLU6: lambda _: ("relu6", 0.0),
    nn.LeakyReLU: lambda layer: ("leaky_relu", float(layer.negative_slope)),
    nn.SiLU: lambda _: ("silu", 0.0),
    nn.Hardswish: lambda _: ("hardswish", 0.0),
    nn.Hardsigmoid: lambda _: ("hardsigmoid", 0.0),
    nn.Sigmoid: lambda _: ("sigmoid", 0.0),
    nn.GELU: lambda layer: ("gelutanh" if layer.approximate == "tanh" else "gelu", 0.0),
}
_ORIGINAL = "_fastconv_original_sequence"  # on the twin of a subclass of nn.Sequential: the subclass


def _forward(self: nn.Sequential, input: Any) -> Any:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(input) is not Tensor or _has_any_global_hook():
        return nn.Sequential.forward(self, input)
    layers = list(self._modules.values())
    while layers:
        run = layers[: _length(layers, 0)]
        together = _together(run, input) if len(run) > 1 else NotImplemented
        if together is NotImplemented:
            run = run[:1]
            together = run[0](input)
        input, layers = together, layers[len(run) :]
    return input


class Sequential(nn.Sequential):
    """:class:`torch.nn.Sequential` whose convolutions, norms and activations run together in inference."""

    forward = _forward


def _length(layers: Sequence[nn.Module], start: int) -> int:
    """How many layers from ``start`` on are a convolution with what can run in its call; 1 where there is nothing."""
    end = start + 1
    if type(layers[start]) is Conv2d and layers[start].padding_mode == "zeros":
        if end < len(layers) and type(layers[end]) is BatchNorm2d:
            end += 1
        if end < len(layers) and type(layers[end]) in _ACTIVATIONS:
            end += 1
    return end - start


def join(model: nn.Module) -> tuple[str, ...]:
    """Gives the sequences of a model that have layers to run together the class that does; their names."""
    found = {name: module for name, module in model.named_modules() if _gains(module)}
    for module in found.values():
        module.__class__ = Sequential if type(module) is nn.Sequential else _twin(type(module))
    return tuple(found)


def part(model: nn.Module) -> None:
    """Undoes :func:`join`."""
    for module in model.modules():
        if type(module) is Sequential:
            module.__class__ = nn.Sequential
        elif original := vars(type(module)).get(_ORIGINAL):
            module.__class__ = original


def _gains(module: nn.Module) -> bool:
    """Whether a container calls its layers in turn, and some of them can run together."""
    if not isinstance(module, nn.Sequential) or "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return False
    layers = list(module._modules.values())
    return type(module).forward is nn.Sequential.forward and any(_length(layers, i) > 1 for i in range(len(layers)))


@cache
def _twin(cls: type[nn.Sequential]) -> type[nn.Sequential]:
    """A subclass of nn.Sequential with our forward, under its own name; it is pickled as its original."""

    def __reduce_ex__(self: nn.Sequential, protocol: int) -> tuple[Any, ...]:
        _, _, *state = super(twin, self).__reduce_ex__(protocol)
        return (_new, (cls,), *state)

    own = {"forward": _forward, "__reduce_ex__": __reduce_ex__, "__module__": cls.__module__, _ORIGINAL: cls}
    twin = type(cls.__name__, (cls,), own)
    return twin


def _new(cls: type[nn.Sequential]) -> nn.Sequential:
    return copyreg.__newobj__(_twin(cls))


def _quiet(layer: nn.Module) -> bool:
    """Nobody watches the layer or has replaced what it runs."""
    own = vars(layer)
    if "forward" in own or "_conv_forward" in own:
        return False
    return not (
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    )


def _together(run: Sequence[nn.Module], x: Tensor) -> Any:
    """The layers as one call; NotImplemented where they have to run one after the other."""
    if not all(map(_quiet, run)):
        return NotImplemented
    conv, *others = run
    activation = _ACTIVATIONS[type(others[-1])](others[-1]) if type(others[-1]) in _ACTIVATIONS else ("none", 0.0)
    call = (x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, *activation)
    if not isinstance(others[0], BatchNorm2d):
        return conv2d_act(*call)
    norm = others[0]
    if norm.training or norm.running_mean is None:
        return NotImplemented
    return conv2d_norm_act(*call, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
