"""FLOP formulas of the operators, for torch.utils.flop_counter.

That module imports Triton where it is installed, a fifth of a second that a user who counts no FLOPs need not wait. So
the formulas are registered when somebody imports it: a finder before all others lets them find the module and adds one
step to its loading. Nothing is registered twice, and a module loaded before fastconv gets the formulas at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

COUNTER = "torch.utils.flop_counter"


def _flops(y_shape: Sequence[int], channels_per_group: int, window: Sequence[int]) -> int:
    n, k, p, q = y_shape
    return 2 * n * k * p * q * channels_per_group * window[0] * window[1]


def _fprop(x_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(out_shape, w_shape[1], w_shape[2:])


def _dgrad(dy_shape, w_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(dy_shape, w_shape[1], w_shape[2:])


def _wgrad(dy_shape, x_shape, *args, out_shape=None, **kwargs) -> int:
    return _flops(dy_shape, out_shape[1], out_shape[2:])


def _register(counter: ModuleType) -> None:
    ops = torch.ops.fastconv
    counter.register_flop_formula([ops.conv2d, ops.conv2d_act])(_fprop)
    counter.register_flop_formula(ops.conv2d_dgrad)(_dgrad)
    counter.register_flop_formula(ops.conv2d_wgrad)(_wgrad)


class _Finder(MetaPathFinder):
    """Finds torch's FLOP counter as the other finders do, and registers the formulas once its code has run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _then_register(spec.loader.exec_module)
        return spec


def _then_register(execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    def exec_module(module: ModuleType) -> None:
        execute(module)
        _register(module)

    return exec_module


if COUNTER in sys.modules:
    _register(sys.modules[COUNTER])
else:
    sys.meta_path.insert(0, _Finder())
