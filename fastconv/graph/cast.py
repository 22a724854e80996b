"""A model that computes in another dtype, and takes and returns what it did before: ``optimize(..., dtype=...)``."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fastconv.graph.values import DTYPES


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the model in a dtype, with the model's own names and signature.

    Floating point inputs are converted to it, and results back to what the model's first parameter has. ValueError for
    a dtype that plans do not know.
    """
    if dtype not in DTYPES:
        known = ", ".join(str(each) for each in DTYPES)
        raise ValueError(f"The argument dtype={dtype} must be one of {known}: plans compute in no other.")
    floats = (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    original = next(floats, torch.float32)
    cast = copy.deepcopy(model).to(dtype)
    inner = cast.forward

    @functools.wraps(inner)  # with its signature, by which a capture knows the arguments
    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = pytree.tree_map(lambda value: _converted(value, dtype), (args, kwargs))
        results = inner(*args, **kwargs)
        return pytree.tree_map(lambda value: _converted(value, original), results)

    cast.forward = forward
    return cast


def _converted(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value
