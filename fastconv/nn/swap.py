"""Changes a model's layers to fastconv's in place, and back.

A swap changes ``module.__class__`` and nothing else: the object, its parameters, hooks, buffers, mode and state_dict
keys stay. Of layers only torch's own classes are swapped, because a subclass may compute something else. A parametrized
module (``torch.nn.utils.parametrize``) has a class made for it alone; it gets a copy of that class over fastconv's
layer. Sequences whose layers can run together change their class too (``sequence.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, pooling
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from fastconv.nn import sequence
from fastconv.nn.layers import LAYERS
from fastconv.nn.observe import observe
from fastconv.nn.report import Report, Row

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_TORCH_CLASS = {ours: torchs for torchs, ours in LAYERS.items()}
_QUANTIZED = "torch.ao.nn."  # where torch keeps its quantized layers
_ORIGINAL = "_fastconv_original_class"  # on the copy of a parametrized class: the class it was copied from

Filter = Callable[[nn.Module, str], bool]


def swap(
    model: nn.Module, filter_fn: Filter | None = None, dry_run: bool = False, *, example_inputs: Any = None
) -> Report:
    """Lets a model's convolutions, pools and norms run on fastconv's kernels, in place; see :func:`restore`.

    model: any module; it may itself be a convolution.
    filter_fn: ``filter_fn(module, name)`` is asked for every layer that could be swapped; False keeps it.
    dry_run: report what would happen and leave the model as it is.
    example_inputs: the model's input, a tuple of arguments or a dict of keyword arguments. One forward pass, in eval
        mode and without gradients, then tells every layer's problem and kernel.

    Returns a report that names every one of them in the model and, where it was kept, says why.
    Raises TypeError for a model that is no module or a filter that cannot be called. When the filter or the example
    pass raises, the model is what it was.
    """
    _check_module("swap", model)
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"swap: filter_fn must be a function of a module and its name, but is {filter_fn!r}.")
    rows, chosen = [], {}
    for name, module in model.named_modules():
        if not _is_layer(module):
            continue
        reason = _refuses(module)
        if reason is None and filter_fn is not None and not filter_fn(module, name):
            reason = "filter_fn left it out."
        rows.append(Row(name, _kind(module), kept=reason))
        if reason is None:
            chosen[name] = module
    before, sequences = [(module, type(module)) for module in model.modules()], ()
    try:
        for module in chosen.values():
            module.__class__ = _swapped_class(type(module))
        sequences = sequence.join(model)
        if example_inputs is not None:
            seen = observe(model, example_inputs, chosen)
            rows = [replace(row, seen=seen.get(row.name)) for row in rows]
    except BaseException:
        dry_run = True
        raise
    finally:
        if dry_run:
            for module, own in before:
                module.__class__ = own
    return Report(tuple(rows), dry_run, sequences)


def restore(model: nn.Module) -> int:
    """Turns every fastconv layer of the model into torch's own, in place, and returns how many there were.

    After :func:`swap` the model is exactly what it was. Layers that were built as fastconv's become torch's too.
    Raises TypeError for a model that is no module.
    """
    _check_module("restore", model)
    count = 0
    sequence.part(model)
    for module in model.modules():
        if _base(module) in _TORCH_CLASS:
            module.__class__ = _restored_class(type(module))
            count += 1
    return count


def _check_module(function: str, model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function} takes a torch.nn.Module, but got {model!r} of type {type(model).__name__}.")


def _base(module: nn.Module) -> type:
    """The module's class, or the one below its parametrizations."""
    return parametrize.type_before_parametrizations(module)


def _is_layer(module: nn.Module) -> bool:
    """Whether it is a convolution, pool or norm of a kind we have: torch's, derived from it, scripted or quantized."""
    if isinstance(module, torch.jit.ScriptModule):
        return any(cls.__name__ == module.original_name for cls in LAYERS)
    ours = (conv.__name__, pooling.__name__, batchnorm.__name__)
    return any(
        cls.__module__ in ours or cls in LAYERS or (cls.__module__.startswith(_QUANTIZED) and "Conv" in cls.__name__)
        for cls in type(module).__mro__
    )


def _kind(module: nn.Module) -> str:
    return module.original_name if isinstance(module, torch.jit.ScriptModule) else _base(module).__name__


def _refuses(module: nn.Module) -> str | None:
    """Why this layer has to stay as it is, or None."""
    cls = _base(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "It is compiled by TorchScript, which fixes its operators."
    if cls in _TORCH_CLASS:
        return "It is a fastconv layer already."
    if isinstance(module, LazyModuleMixin):
        return f"{cls.__name__} has no sizes before its first call; swap again after it."
    if cls not in LAYERS:
        return _refuses_class(cls)
    replaced = [name for name in ("forward", "_conv_forward") if name in vars(module)]
    if replaced:
        return f"Its {replaced[0]} was replaced on this module."
    return next(filter(None, map(_refuses_tensor, ("weight", "bias"), _tensors(module))), None)


def _refuses_class(cls: type[nn.Module]) -> str:
    parent = next((base for base in cls.__mro__ if base in LAYERS or base in _TORCH_CLASS), None)
    if parent is None:
        kind = "quantized " if cls.__module__.startswith(_QUANTIZED) else ""
        return f"fastconv has no {kind}{cls.__name__}; PyTorch's own operator runs."
    if any(getattr(cls, name, None) is not getattr(parent, name, None) for name in ("forward", "_conv_forward")):
        return f"{cls.__name__} has its own forward."
    return f"{cls.__name__} is a subclass of {parent.__name__}; only torch's own classes are swapped."


def _tensors(module: nn.Module) -> list[Tensor | None]:
    """weight and bias without computing them: below a parametrization stands its first original."""
    found = []
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(module, name):
            found.append(next(iter(module.parametrizations[name].parameters()), None))
        else:
            found.append(module._parameters.get(name, vars(module).get(name)))
    return found


def _refuses_tensor(name: str, tensor: Tensor | None) -> str | None:
    if tensor is None:
        return None
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"Its {name} is a {type(tensor).__name__}, which brings operators of its own."
    if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        return f"Its {name} is {kind}; PyTorch's own operator runs."
    return None


def _swapped_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls in LAYERS:
        return LAYERS[cls]
    twin = _rebased(cls, LAYERS[cls.__base__])
    setattr(twin, _ORIGINAL, cls)
    return twin


def _restored_class(cls: type[nn.Module]) -> type[nn.Module]:
    if cls in _TORCH_CLASS:
        return _TORCH_CLASS[cls]
    original = vars(cls).get(_ORIGINAL)
    if original is not None and _namespace(original) == _namespace(cls):
        return original
    return _rebased(cls, _TORCH_CLASS[cls.__base__])  # parametrized, or parametrized further, after the swap


def _rebased(cls: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (base,), _namespace(cls))


def _namespace(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__", _ORIGINAL)}
