"""The operators a plan knows, as functions on tensors in PyTorch's own operators.

Captured graphs are translated into calls of these, the passes rewrite calls into calls, and lowering turns each into
steps of a program. Because every operator runs, the graph between any two passes runs too, and a test can hold it to
the model it came from. Activations are N C H W, or N F; all but tensors is known when a graph is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Sides = tuple[tuple[int, int], tuple[int, int]]  # padding above and below, left and right

ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda x, _: x,
    "relu": lambda x, _: F.relu(x),
    "relu6": lambda x, _: F.relu6(x),
    "leaky_relu": lambda x, alpha: F.leaky_relu(x, alpha),
    "silu": lambda x, _: F.silu(x),
    "hardswish": lambda x, _: F.hardswish(x),
    "hardsigmoid": lambda x, _: F.hardsigmoid(x),
    "sigmoid": lambda x, _: torch.sigmoid(x),
    "gelu": lambda x, _: F.gelu(x),
    "gelutanh": lambda x, _: F.gelu(x, approximate="tanh"),
}


def _finish(y: Tensor, residual: Tensor | None, activation: str, alpha: float) -> Tensor:
    return ACTIVATIONS[activation](y if residual is None else y + residual, alpha)


def _padded(x: Tensor, padding: Sides) -> Tensor:
    (top, bottom), (left, right) = padding
    return F.pad(x, (left, right, top, bottom)) if any((top, bottom, left, right)) else x


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: Sides = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    alpha: float = 0.0,
) -> Tensor:
    """activation(convolution + bias + residual)."""
    (top, bottom), (left, right) = padding
    if top == bottom and left == right:
        y = F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    else:
        y = F.conv2d(_padded(x, padding), weight, bias, stride, 0, dilation, groups)
    return _finish(y, residual, activation, alpha)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    output_padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    activation: str = "none",
    alpha: float = 0.0,
) -> Tensor:
    """activation(transposed convolution + bias + residual); weight as torch's, (C_in, C_out / groups, R, S)."""
    y = F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _finish(y, residual, activation, alpha)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    alpha: float = 0.0,
) -> Tensor:
    """activation(x · weightᵀ + bias + residual) over the last axis."""
    return _finish(F.linear(x, weight, bias), residual, activation, alpha)


def affine(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    alpha: float = 0.0,
) -> Tensor:
    """activation(x · scale + shift + residual) with one scale and shift a channel: a batch norm that is over."""
    y = x * scale[:, None, None] + shift[:, None, None]
    return _finish(y, residual, activation, alpha)


def map2d(
    x: Tensor,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "none",
    alpha: float = 0.0,
) -> Tensor:
    """activation(x · scale + residual); scale is (N, C, 1, 1)."""
    return _finish(x if scale is None else x * scale, residual, activation, alpha)


def pad(x: Tensor, *, padding: Sides) -> Tensor:
    """Zeros around each map."""
    return _padded(x, padding)


def max_pool2d(
    x: Tensor,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    return F.max_pool2d(x, window, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    x: Tensor,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    return F.avg_pool2d(x, window, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool2d(x: Tensor, *, size: tuple[int, int]) -> Tensor:
    return F.adaptive_avg_pool2d(x, size)


def adaptive_max_pool2d(x: Tensor, *, size: tuple[int, int]) -> Tensor:
    return F.adaptive_max_pool2d(x, size)


def bilinear2d(x: Tensor, *, size: tuple[int, int], corners: bool = False) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=corners)


def nearest2d(x: Tensor, *, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="nearest")


def local_response_norm(x: Tensor, *, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return F.local_response_norm(x, size, alpha, beta, k)


def cat(xs: Sequence[Tensor]) -> Tensor:
    """Along the channels."""
    return torch.cat(xs, 1)


def flatten(x: Tensor) -> Tensor:
    """N C H W -> N, C·H·W, in this order."""
    return torch.flatten(x, 1)


def row_affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """x · scale + shift, each one number or of the shape of x's last axes: a layer's scale, a table of positions."""
    y = x if scale is None else x * scale
    return y if shift is None else y + shift


def leading_tokens(x: Tensor, tokens: Tensor) -> Tensor:
    """(N, tokens, channels) behind the same tokens (1, tokens, channels) for every image."""
    return torch.cat([tokens.expand(x.shape[0], -1, -1), x], 1)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, axes: int, eps: float) -> Tensor:
    """Over the last ``axes`` axes."""
    return F.layer_norm(x, x.shape[-axes:], weight, bias, eps)


def softmax(x: Tensor) -> Tensor:
    """Over the last axis."""
    return torch.softmax(x, -1)


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, factor: float | None = None
) -> Tensor:
    """softmax(factor · queries · keysᵀ + mask) · values for tensors (N, heads, tokens, channels); factor None: the
    inverse root of the queries' channels."""
    return F.scaled_dot_product_attention(queries, keys, values, mask, scale=factor)


def reshape(x: Tensor, *, size: tuple[int, ...]) -> Tensor:
    """At most one of the sizes is -1: what is left."""
    return torch.reshape(x, size)


def permute(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    return torch.permute(x, axes)


def select(x: Tensor, *, axis: int, index: int) -> Tensor:
    """One place of an axis, which goes."""
    return torch.select(x, axis, index)


def narrow(x: Tensor, *, axis: int, start: int, length: int) -> Tensor:
    """Some places of an axis, in order."""
    return torch.narrow(x, axis, start, length)


# What carries an epilogue: residual and activation.
FUSED = (conv2d, conv_transpose2d, linear, affine, map2d)

# What only says how elements are looked at.
VIEWS = (reshape, permute, select, narrow)

ALL = (*FUSED, *VIEWS, row_affine, leading_tokens, layer_norm, softmax, attention, pad,
       max_pool2d, avg_pool2d, adaptive_avg_pool2d, adaptive_max_pool2d, bilinear2d, nearest2d,
       local_response_norm, cat, flatten)  # fmt: skip
