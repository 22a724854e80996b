"""Pools with torch.nn.functional's names, argument order and defaults."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv import ops as ops  # registers the operators
from fastconv._native import C
from fastconv.functional.arguments import Ints, as_int, as_tuple, check_tensor

_op = torch.ops.fastconv
_max_pool2d = _op.max_pool2d.default
_max_pool2d_indexed = _op.max_pool2d_indexed.default
_adaptive_max_pool2d = _op.adaptive_max_pool2d.default
_adaptive_max_pool2d_indexed = _op.adaptive_max_pool2d_indexed.default
_avg_pool2d = _op.avg_pool2d.default
_adaptive_avg_pool2d = _op.adaptive_avg_pool2d.default
_max_unpool2d = _op.max_unpool2d.default
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling

# The extension's entry points take the ordinary call without a schema to parse, and answer NotImplemented to others.
_quick_max_pool2d = C.max_pool2d
_quick_avg_pool2d = C.avg_pool2d
_quick_adaptive_avg_pool2d = C.adaptive_avg_pool2d


def max_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D max pooling, ``torch.nn.functional.max_pool2d``'s signature and result.

    input: (N, C, H, W) or (C, H, W). Returns (N, C, P, Q) or (C, P, Q); with return_indices also the int64 position of
    each maximum in its plane. Of equal maxima the first counts, of several NaNs the last, as in torch.
    Raises RuntimeError for shapes and geometry torch refuses, before anything is allocated.
    """
    if not return_indices and not _is_dynamo_compiling():
        y = _quick_max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode)
        if y is not NotImplemented:
            return y
    x = _batched(input, 2, "max_pool2d")
    return _unbatch(input, 2, _max(x, *_geometry(2, kernel_size, stride, padding, dilation), ceil_mode, return_indices))


def max_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """1-D max pooling, ``torch.nn.functional.max_pool1d``'s signature and result; see :func:`max_pool2d`.

    input: (N, C, L) or (C, L). Returns (N, C, Q) or (C, Q).
    """
    x = _batched(input, 1, "max_pool1d")
    window, stride, padding, dilation = _geometry(1, kernel_size, stride, padding, dilation)
    flat = (1, *window), (1, *stride), (0, *padding), (1, *dilation)
    result = _unbatch(input, 1, _max(x, *flat, ceil_mode, return_indices))
    if return_indices or (torch.is_grad_enabled() and input.requires_grad):
        return result
    return result.contiguous()  # as torch's, which keeps the input's layout only where it also finds indices


def avg_pool2d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """2-D average pooling, ``torch.nn.functional.avg_pool2d``'s signature and result.

    input: (N, C, H, W) or (C, H, W). Returns (N, C, P, Q) or (C, P, Q). The divisor is the window's size clipped to the
    padded input; without count_include_pad clipped to the input; divisor_override replaces it.
    """
    if not _is_dynamo_compiling():
        y = _quick_avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        if y is not NotImplemented:
            return y
    check_tensor(input, "input", "avg_pool2d")
    if input.dim() < 3:  # IndexError is what torch raises here, and only here
        raise IndexError(f"avg_pool2d takes an input of 3 or 4 dimensions, but got shape {tuple(input.shape)}.")
    x = _batched(input, 2, "avg_pool2d")
    window, stride, padding, _ = _geometry(2, kernel_size, stride, padding, 1)
    divisor = None if divisor_override is None else as_int(divisor_override, "divisor_override")
    return _unbatch(input, 2, _avg_pool2d(x, window, stride, padding, ceil_mode, count_include_pad, divisor))


def avg_pool1d(
    input: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """1-D average pooling, ``torch.nn.functional.avg_pool1d``'s signature and result; see :func:`avg_pool2d`.

    input: (N, C, L) or (C, L). Returns (N, C, Q) or (C, Q).
    """
    x = _batched(input, 1, "avg_pool1d")
    window, stride, padding, _ = _geometry(1, kernel_size, stride, padding, 1)
    y = _avg_pool2d(x, (1, *window), (1, *stride), (0, *padding), ceil_mode, count_include_pad, None)
    return _unbatch(input, 1, y)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """2-D adaptive average pooling, ``torch.nn.functional.adaptive_avg_pool2d``'s signature and result.

    input: (N, C, H, W) or (C, H, W); a None in output_size keeps the input's size.
    """
    if not _is_dynamo_compiling():
        y = _quick_adaptive_avg_pool2d(input, output_size)
        if y is not NotImplemented:
            return y
    size = _output_size(input, output_size, "adaptive_avg_pool2d")
    x = _batched(input, 2, "adaptive_avg_pool2d")
    return _unbatch(input, 2, _adaptive_avg_pool2d(x, size))


def adaptive_avg_pool1d(input: Tensor, output_size: Ints) -> Tensor:
    """1-D adaptive average pooling, ``torch.nn.functional.adaptive_avg_pool1d``'s signature and result."""
    x = _batched(input, 1, "adaptive_avg_pool1d")
    return _unbatch(input, 1, _adaptive_avg_pool2d(x, (1, *as_tuple(output_size, 1, "output_size"))))


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None], return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """2-D adaptive max pooling, ``torch.nn.functional.adaptive_max_pool2d``'s signature and result.

    input: (N, C, H, W) or (C, H, W); a None in output_size keeps the input's size.
    """
    size = _output_size(input, output_size, "adaptive_max_pool2d")
    x = _batched(input, 2, "adaptive_max_pool2d")
    return _unbatch(input, 2, _adaptive_max(x, size, return_indices))


def adaptive_max_pool1d(
    input: Tensor, output_size: Ints, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """1-D adaptive max pooling, ``torch.nn.functional.adaptive_max_pool1d``'s signature and result."""
    x = _batched(input, 1, "adaptive_max_pool1d")
    return _unbatch(input, 1, _adaptive_max(x, (1, *as_tuple(output_size, 1, "output_size")), return_indices))


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """The partial inverse of :func:`max_pool2d`, ``torch.nn.functional.max_unpool2d``'s signature and result.

    input, indices: (N, C, H, W) or (C, H, W). Everything but the maxima becomes zero; where two indices are equal the
    last wins. Raises RuntimeError for an index outside the output and ValueError for an impossible output_size.
    """
    check_tensor(input, "input", "max_unpool2d")
    check_tensor(indices, "indices", "max_unpool2d")
    window, stride, padding, _ = _geometry(2, kernel_size, stride, padding, 1)
    size = _unpool_size(input, window, stride, padding, output_size)
    x, index = _batched(input, 2, "max_unpool2d"), _batched(indices, 2, "max_unpool2d")
    return _unbatch(input, 2, _max_unpool2d(x, index, size))


def _max(x, window, stride, padding, dilation, ceil_mode, return_indices):
    if return_indices:
        return _max_pool2d_indexed(x, window, stride, padding, dilation, ceil_mode, True)
    return _max_pool2d(x, window, stride, padding, dilation, ceil_mode)


def _adaptive_max(x, size, return_indices):
    return _adaptive_max_pool2d_indexed(x, size) if return_indices else _adaptive_max_pool2d(x, size)


def _geometry(dims: int, window: Ints, stride: Ints | None, padding: Ints, dilation: Ints) -> tuple[tuple, ...]:
    """Window, stride, padding and dilation as tuples; a stride of None or () is the window."""
    window = as_tuple(window, dims, "kernel_size")
    if stride is None or (not isinstance(stride, int | torch.SymInt) and len(stride) == 0):
        stride = window
    return (
        window,
        as_tuple(stride, dims, "stride"),
        as_tuple(padding, dims, "padding"),
        as_tuple(dilation, dims, "dilation"),
    )


def _output_size(input: Tensor, size: int | Sequence[int | None], name: str) -> tuple[int, ...]:
    """The adaptive output size (P, Q); a None is the input's own."""
    check_tensor(input, "input", name)
    if isinstance(size, int | torch.SymInt):
        return as_tuple(size, 2, "output_size")
    if isinstance(size, str | Tensor) or not isinstance(size, Sequence):
        raise TypeError(f"output_size must be an int or two ints or None, but is {size!r}.")
    size = tuple(value if value is None else as_int(value, "output_size") for value in size)
    if input.dim() <= len(size):
        raise ValueError(f"An output_size of {len(size)} numbers needs an input of more dimensions than {input.dim()}.")
    if len(size) != 2:
        raise RuntimeError(f"output_size must be an int or two ints or None, but is {size!r}.")
    return tuple(given if given is not None else own for given, own in zip(size, input.shape[-2:], strict=True))


def _unpool_size(input: Tensor, window, stride, padding, size: Sequence[int] | None) -> tuple[int, ...]:
    default = [(input.shape[i - 2] - 1) * stride[i] + window[i] - 2 * padding[i] for i in range(2)]
    if size is None:
        size = default
    else:
        if len(size) == 4:
            size = size[2:]
        if len(size) != 2:
            raise ValueError(f"output_size must have 2 or 4 elements, but has {len(size)}: {size!r}.")
        for i in range(2):
            low, high = default[i] - stride[i], default[i] + stride[i]
            if not low < size[i] < high:
                raise ValueError(f"output_size {size!r} is invalid: dimension {i} must lie between {low} and {high}.")
    if any(value < 0 for value in size):
        raise ValueError(f"max_unpool2d: the output would have the negative size {tuple(size)}.")
    return tuple(size)


def _batched(input: Tensor, dims: int, name: str) -> Tensor:
    """The input as (N, C, H, W): a batch axis in front, a height of one for 1-D pools."""
    check_tensor(input, "input", name)
    if input.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"{name} takes an input of {dims + 1} (unbatched) or {dims + 2} (batched) dimensions, "
            f"but got shape {tuple(input.shape)}."
        )
    if input.dim() == dims + 1:
        input = _unpermuted(input).unsqueeze(0)
    return input if dims == 2 else input.unsqueeze(-2)


def _unpermuted(input: Tensor) -> Tensor:
    """An unbatched input has no channels_last form: torch's result is contiguous whatever the strides."""
    return input.contiguous() if input.layout is torch.strided else input


def _unbatch(input: Tensor, dims: int, result):
    """Undoes :func:`_batched` on a result or on each of a pair."""
    if isinstance(result, tuple):
        return tuple(_unbatch(input, dims, part) for part in result)
    result = result if dims == 2 else result.squeeze(-2)
    return result if input.dim() == dims + 2 else result.squeeze(0)
