"""Batch and local response normalisation with torch.nn.functional's names, arguments, defaults, results and errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary, has_torch_function_variadic

from fastconv import ops as ops  # registers the operators
from fastconv._native import C

_inference = torch.ops.fastconv.batch_norm_inference.default
_train = torch.ops.fastconv.batch_norm_train.default
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_quick = C.batch_norm  # answers NotImplemented to what is not the ordinary call
_response = torch.ops.fastconv.local_response_norm.default
_quick_response = C.local_response_norm  # likewise
_MOST_CHANNELS = 2**31  # of a window

_ARITHMETIC = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation, ``torch.nn.functional.batch_norm``'s signature and result.

    input: (N, C), (N, C, L) or (N, C, H, W); the others: (C), of the input's dtype or, beside a 16-bit input, float32.
    training: by the batch's mean and variance, which then also move the running ones, where there are any, by
        ``momentum`` (the variance unbiased); otherwise by the running ones.

    Volumes, empty tensors, other devices and dtypes, and what torch refuses, go to torch's own function, which raises
    ValueError for a training batch of one value a channel and RuntimeError for wrong lengths and dtypes.
    """
    if not _is_dynamo_compiling():
        y = _quick(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if y is not NotImplemented:
            return y
    arguments = (input, running_mean, running_var, weight, bias)
    if has_torch_function_variadic(*arguments):
        return handle_torch_function(batch_norm, arguments, *arguments, training=training, momentum=momentum, eps=eps)
    if not _ours(*arguments, training, momentum, eps):
        return torch.nn.functional.batch_norm(*arguments, training, momentum, eps)
    if training:
        return _train(input, weight, bias, running_mean, running_var, momentum, eps)[0]
    return _inference(input, weight, bias, running_mean, running_var, eps)


def _our_input(x) -> bool:
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.device.type not in ("cpu", "meta"):
        return False
    return x.dtype in _ARITHMETIC and 2 <= x.dim() <= 4 and x.numel() != 0


def _ours(x, mean, variance, weight, bias, training, momentum, eps) -> bool:
    """Whether our kernels take the call; csrc/bindings/norm_python.cpp says the same of plain tensors."""
    if not _our_input(x):
        return False
    if not isinstance(momentum, float | int) or not isinstance(eps, float | int) or not eps > 0:
        return False
    if (mean is None) != (variance is None) or (mean is None if not training else x.numel() == x.shape[1]):
        return False
    given = [t for t in (mean, variance, weight, bias) if t is not None]
    if not all(isinstance(t, Tensor) for t in given):
        return False
    if any(t.dim() != 1 or t.layout is not torch.strided or t.device != x.device for t in given):
        return False
    if any(t.shape[0] != x.shape[1] or t.dtype != given[0].dtype for t in given):
        return False
    return not given or given[0].dtype in (x.dtype, _ARITHMETIC[x.dtype])


def local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """Local response normalisation, ``torch.nn.functional.local_response_norm``'s signature and result.

    It is that of Krizhevsky et al. 2012, section 3.3, with ``alpha`` divided by ``size``.

    input: (N, C, L) or (N, C, H, W); each element is divided by (k + alpha · mean)^beta of the mean square of the
        ``size`` channels around it, of which those outside count as zero.

    bfloat16 and float16 are computed in float32 and rounded once, where torch rounds every step or refuses them.
    Volumes, empty tensors, other devices and dtypes, and what torch refuses, go to torch's own function, which raises
    ValueError for fewer than three dimensions, RuntimeError for a window of no channel and TypeError for one that is no
    int.
    """
    if not _is_dynamo_compiling():
        y = _quick_response(input, size, alpha, beta, k)
        if y is not NotImplemented:
            return y
    if has_torch_function_unary(input):
        return handle_torch_function(local_response_norm, (input,), input, size, alpha=alpha, beta=beta, k=k)
    numbers = all(isinstance(v, float) or (isinstance(v, int) and v.bit_length() < 64) for v in (alpha, beta, k))
    plain = isinstance(size, int) and not isinstance(size, bool) and 0 < size < _MOST_CHANNELS
    if not numbers or not plain or not _our_input(input) or input.dim() == 2:
        return torch.nn.functional.local_response_norm(input, size, alpha, beta, k)
    return _response(input, size, alpha, beta, k)
