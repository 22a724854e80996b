"""The normalisation operators: shapes for tracing. torch counts no FLOPs for them, and neither do we."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from fastconv import dispatch as dispatch  # installs the planner the operators ask

_ARITHMETIC = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def as_normalized(x: Tensor) -> Tensor:
    """torch's layout of a result: contiguous where the input is, else what it suggests."""
    format = torch.contiguous_format if x.is_contiguous() else suggest_memory_format(x)
    return torch.empty_like(x, memory_format=format)


def _pair(x: Tensor) -> Tensor:
    return x.new_empty((2, x.shape[1]), dtype=_ARITHMETIC.get(x.dtype, x.dtype))


def _as_x(x: Tensor) -> Tensor:
    """A gradient, in the input's layout."""
    return torch.empty_like(x, memory_format=suggest_memory_format(x))


@torch.library.register_fake("fastconv::batch_norm_inference")
def _(x, weight, bias, running_mean, running_var, eps):
    return as_normalized(x)


@torch.library.register_fake("fastconv::batch_norm_train")
def _(x, weight, bias, running_mean, running_var, momentum, eps):
    return as_normalized(x), _pair(x)


@torch.library.register_fake("fastconv::batch_norm_dgrad")
def _(dy, x, weight, mean, variance, training, eps):
    return _as_x(x), _pair(x)


@torch.library.register_fake("fastconv::batch_norm_wgrad")
def _(dy, x, mean, variance, training, eps):
    return _pair(x)


@torch.library.register_fake("fastconv::local_response_norm")
def _(x, size, alpha, beta, k):
    if x.is_contiguous():
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return x / x.new_empty(x.shape)  # the strides of torch's quotient


@torch.library.register_fake("fastconv::local_response_norm_dgrad")
def _(dy, x, size, alpha, beta, k):
    return _as_x(x)
