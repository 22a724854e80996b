"""The problems of a model: runs it once and writes down what every convolution and pool was asked to do.

Works for any model built on torch's functions, swapped or not: the calls are seen on their way into torch and into
fastconv alike, so layers, functional calls and subclasses with padding of their own all count.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastconv.functional.arguments import as_tuple, sides
from fastconv.problem import Problem
from fastconv.profiling import trace
from fastconv.profiling.layers import evaluating, layer_names
from fastconv.testing import corpus
from fastconv.testing.inputs import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items() if name != "tf32"}
_Call = dict[str, Any]


def _spatial(letter: str, values: Sequence[int]) -> str:
    return f"_{letter}{values[0]}x{values[1]}"


def _geometry(call: _Call, window: Sequence[int]) -> str:
    """Stride, padding and dilation as words of a problem string."""
    stride = as_tuple(call["stride"] if call.get("stride") not in (None, []) else window, 2, "stride")
    dilation = as_tuple(call.get("dilation", 1), 2, "dilation")
    top, bottom, left, right = sides(call["padding"], window, stride, dilation)
    return f"{_spatial('u', stride)}_p{top}:{bottom}x{left}:{right}{_spatial('d', dilation)}"


def _head(x: Tensor) -> str:
    n, c, h, w = x.shape if x.dim() == 4 else (1, *x.shape)
    return f"n{n}c{c}h{h}w{w}"


def _conv(call: _Call) -> str:
    k, _, r, s = call["weight"].shape
    bias = "" if call.get("bias") is None else "_bias"
    return f"{_head(call['input'])}_k{k}r{r}s{s}{_geometry(call, (r, s))}_g{call['groups']}{bias}"


def _transposed(call: _Call) -> str:
    """A transposed convolution is the input gradient of the convolution that maps its output to its input."""
    x, (k, c, r, s) = call["input"], call["weight"].shape
    stride, padding, dilation, extra = (
        as_tuple(call[name], 2, name) for name in ("stride", "padding", "dilation", "output_padding")
    )
    h, w = (
        (size - 1) * stride[i] - 2 * padding[i] + dilation[i] * (window - 1) + extra[i] + 1
        for i, (size, window) in enumerate(zip(x.shape[-2:], (r, s), strict=True))
    )
    groups, n = call["groups"], x.shape[0] if x.dim() == 4 else 1
    bias = "" if call.get("bias") is None else "_bias"
    return f"n{n}c{c * groups}h{h}w{w}_k{k}r{r}s{s}{_geometry(call, (r, s))}_g{groups}_dgrad{bias}"


def _window(call: _Call) -> str:
    r, s = window = as_tuple(call["kernel_size"], 2, "kernel_size")
    ceil = "_ceil" if call["ceil_mode"] else ""
    return f"{_head(call['input'])}_r{r}s{s}{_geometry(call, window)}{ceil}"


def _max_pool(call: _Call) -> str:
    return f"maxpool2d_{_window(call)}{'_indexi64' if call.get('return_indices') else ''}"


def _average_pool(call: _Call) -> str:
    counted = "" if call["count_include_pad"] else "_nopad"
    divisor = f"_div{call['divisor_override']}" if call["divisor_override"] else ""
    return f"avgpool2d_{_window(call)}{counted}{divisor}"


def _adaptive(kind: str) -> Callable[[_Call], str]:
    def text(call: _Call) -> str:
        x, size = call["input"], call["output_size"]
        size = size if isinstance(size, Sequence) else (size, size)
        p, q = (axis if wanted is None else wanted for wanted, axis in zip(size, x.shape[-2:], strict=True))
        index = "_indexi64" if call.get("return_indices") else ""
        return f"{kind}_{_head(x)}_o{p}x{q}{index}"

    return text


_CONV = "input weight bias=None stride=1 padding=0 dilation=1 groups=1"
_TRANSPOSED = "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"
_MAX = "input kernel_size stride=None padding=0 dilation=1 ceil_mode=False return_indices=False"
_AVERAGE = "input kernel_size stride=None padding=0 ceil_mode=False count_include_pad=True divisor_override=None"
_ADAPTIVE_MAX = "input output_size return_indices=False"

# Name of the function, in torch.nn.functional as in fastconv.functional -> its signature, and the problem it states.
_FUNCTIONS: dict[str, tuple[str, Callable[[_Call], str]]] = {
    "conv2d": (_CONV, _conv),
    "conv_transpose2d": (_TRANSPOSED, _transposed),
    "max_pool2d": (_MAX, _max_pool),
    "max_pool2d_with_indices": (_MAX, _max_pool),
    "avg_pool2d": (_AVERAGE, _average_pool),
    "adaptive_max_pool2d": (_ADAPTIVE_MAX, _adaptive("adaptivemax2d")),
    "adaptive_max_pool2d_with_indices": (_ADAPTIVE_MAX, _adaptive("adaptivemax2d")),
    "adaptive_avg_pool2d": ("input output_size", _adaptive("adaptiveavg2d")),
}


def _signature(text: str) -> inspect.Signature:
    defaults = {"": inspect.Parameter.empty, "None": None, "False": False, "True": True, "0": 0, "1": 1}

    def parameter(word: str) -> inspect.Parameter:
        name, _, default = word.partition("=")
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults[default])

    return inspect.Signature([parameter(word) for word in text.split()])


_KNOWN = {name: (_signature(signature), text) for name, (signature, text) in _FUNCTIONS.items()}
_MODULES = ("torch", "torch.nn.functional", "torch._C._nn")


@dataclass(frozen=True)
class Captured:
    """One call: the dotted name of the layer that made it ("" for the model itself), and its problem."""

    layer: str
    problem: Problem


class _Recorder(TorchFunctionMode):
    """Sees the calls into torch and says what they were; calls into fastconv are traced by fastconv itself."""

    def __init__(self, found: Callable[[str, _Call], None]):
        super().__init__()
        self._found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _KNOWN and getattr(func, "__module__", None) in _MODULES:
            signature, text = _KNOWN[name]
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self._found(text(bound.arguments), bound.arguments)
        return func(*args, **kwargs)


def _passes(problem: Problem, call: _Call) -> Iterator[Problem]:
    """The problem as training runs it, and the backward passes that autograd will ask for."""
    gradient = call["input"].requires_grad
    yield corpus.trained(problem) if gradient else problem
    if gradient:
        # The gradient of an input gradient (a transposed convolution) is the forward pass.
        yield corpus.backward(problem, "dgrad" if problem.pass_ == "fprop" else "fprop")
    if "weight" in call and call["weight"].requires_grad:
        yield corpus.backward(problem, "wgrad")


def capture(model: nn.Module, *inputs: Tensor, train: bool = False, layout: str | None = "nhwc") -> list[Captured]:
    """Every convolution and pool of one forward pass, in order.

    train: also the backward passes that follow from it.
    layout: "nhwc" or "nchw" writes all problems in that layout; None keeps the layout each input had.
    The model runs in eval mode and is left as it was. Calls in dtypes without a name (int8, complex) are left out.
    """
    calls: list[Captured] = []

    def found(text: str, call: _Call) -> None:
        x = call["input"]
        if x.dtype in _NAMES:
            own = "nhwc" if torch._prims_common.suggest_memory_format(x) == torch.channels_last else "nchw"
            problem = Problem(f"{text}_{_NAMES[x.dtype]}{layout or own}")
            calls.extend(Captured(running[-1], each) for each in (_passes(problem, call) if train else [problem]))

    def traced(call: trace.Call) -> None:
        if call.problem.is_norm:
            return  # torch's are not seen either
        problem = call.problem.replace(layout=layout) if layout else call.problem
        calls.append(Captured(running[-1], problem))

    gradients = torch.enable_grad() if train else torch.no_grad()
    with evaluating(model), layer_names(model) as running, _Recorder(found), gradients, trace.report(traced):
        model(*inputs)
    return calls


def count(calls: Sequence[Captured]) -> Counter[Problem]:
    """The corpus of these calls: problems in order of appearance, with multiplicities."""
    return Counter(call.problem for call in calls)
