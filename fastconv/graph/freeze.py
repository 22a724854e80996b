"""``fastconv.freeze``: eager mode with filters that are packed once. A model stays Python; only its layers change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastconv.graph import operators, partition
from fastconv.graph.network import Network
from fastconv.graph.plan import Plan
from fastconv.graph.select import Policy
from fastconv.graph.values import DTYPES


def freeze(
    model: nn.Module, filter_fn: Callable[[nn.Module, str], bool] | None = None, *, winograd: bool = True
) -> nn.Module:
    """A copy of a model for inference whose convolutions and linear layers have packed filters of their own.

    model: in eval mode; it is not changed, and later changes of its weights do not reach the copy.
    filter_fn: ``filter_fn(module, name)`` says whether a layer may be frozen; all by default.
    winograd: whether Winograd kernels may be chosen (see ``fastconv.config``).

    Layers with hooks, parametrizations, or padding other than zeros stay as they are. Raises ValueError for a model in
    training mode. The copy's frozen layers have no parameters: it cannot be trained, moved or loaded into.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("freeze packs filters for inference, but the model is in training mode: call model.eval().")
    wanted = filter_fn or (lambda module, name: True)
    model = copy.deepcopy(model)
    frozen: dict[nn.Module, nn.Module] = {}  # one for a layer that stands in several places
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not _freezable(module) or not wanted(module, name):
            continue
        new = frozen.setdefault(module, Frozen(module, winograd=winograd))
        if not name:
            return new
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def _freezable(module: nn.Module) -> bool:
    kind = next((k for k in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear) if isinstance(module, k)), None)
    if kind is None or module.weight.dtype not in DTYPES or module.weight.device.type != "cpu":
        return False
    own = type(module) is kind or type(module).__module__.startswith("fastconv.nn")
    hooked = any(vars(module)[name] for name in ("_forward_hooks", "_forward_pre_hooks"))
    return own and not hooked and getattr(module, "padding_mode", "zeros") == "zeros"


class Frozen(nn.Module):
    """One layer whose filter is packed. forward(x) is the layer's, of N C H W (or rows of features) alone."""

    def __init__(self, layer: nn.Module, *, winograd: bool):
        super().__init__()
        names = [name for name in ("weight", "bias") if getattr(layer, name) is not None]
        tensors = {name: getattr(layer, name).detach() for name in names}
        self.__setstate__({"layer": repr(layer), "call": _operator(layer), "tensors": tensors, "winograd": winograd})

    def __getstate__(self) -> dict[str, Any]:
        return self._state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self.training, self._state, self._layer = False, state, state["layer"]
        function, options = state["call"]
        graph, tensors = fx.Graph(), state["tensors"]
        x = graph.placeholder("x")
        call = graph.call_function(function, (x, *(graph.create_node("get_attr", name) for name in tensors)), options)
        self._dtype, self._rank = tensors["weight"].dtype, 2 if function is operators.linear else 4
        part = partition.Part((call,), True, (x,), (call,))
        self._plan = Plan(Network(graph, tensors), part, Policy(winograd=state["winograd"]))

    def forward(self, x: Tensor) -> Tensor:
        """ValueError for another dtype or rank; RuntimeError for an input that requires a gradient."""
        if x.dtype != self._dtype or x.dim() < 2 or (self._rank == 4 and x.dim() != 4):
            raise ValueError(
                f"The frozen layer {self._layer} takes {self._dtype} of {self._rank} axes, not {x.dtype} of {x.dim()}."
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("A frozen layer has no gradient: call it under torch.no_grad(), or train the original.")
        if not x.is_contiguous() and not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
            x = x.contiguous()
        return self._plan([x])[0]

    def train(self, mode: bool = True) -> Frozen:
        if mode:
            raise RuntimeError("A frozen layer is inference alone: train the original model and freeze it again.")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Frozen:
        raise RuntimeError("A frozen layer has one dtype and device: convert the original model and freeze it again.")

    def extra_repr(self) -> str:
        return self._layer


def _operator(layer: nn.Module) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The operator and options that compute a layer."""
    if isinstance(layer, nn.Linear):
        return operators.linear, {}
    options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if isinstance(layer, nn.ConvTranspose2d):
        sides = {"padding": layer.padding, "output_padding": layer.output_padding}
        return operators.conv_transpose2d, options | sides
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":  # an odd pixel goes behind
        padding = tuple((r // 2, r - r // 2) for r in reach)
    else:
        padding = ((0, 0), (0, 0)) if layer.padding == "valid" else tuple((p, p) for p in layer.padding)
    return operators.conv2d, options | {"padding": padding}
