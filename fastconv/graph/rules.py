"""How each operator becomes steps: one rule an operator, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fastconv.graph import operators
from fastconv.graph.values import Filter, Value, value_of

LOWER: dict[Any, Callable[..., Value]] = {}


def _lowers(*functions: Any) -> Callable[[Callable[..., Value]], Callable[..., Value]]:
    def register(rule: Callable[..., Value]) -> Callable[..., Value]:
        LOWER.update(dict.fromkeys(functions, rule))
        return rule

    return register


def _words(bias: Any, residual: Any, activation: str, alpha: float) -> str:
    text = ("_bias" if bias is not None else "") + ("_res" if residual is not None else "")
    if activation == "leaky_relu":
        return f"{text}_leakyrelu{alpha!r}"
    return text if activation == "none" else f"{text}_{activation}"


@_lowers(operators.conv2d)
def _conv2d(
    low, node, x, weight, bias=None, residual=None, *,
    stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, activation="none", alpha=0.0,
):  # fmt: skip
    source, other = low.values[x], low.dense(residual) if residual is not None else None
    k, _, r, s = low.network.tensors.like(weight.target).shape
    (top, bottom), (left, right) = padding
    problem = (
        f"{source.head}_k{k}r{r}s{s}_u{stride[0]}x{stride[1]}_p{top}:{bottom}x{left}:{right}"
        f"_d{dilation[0]}x{dilation[1]}_g{groups}_{source.dtype}nhwc{_words(bias, residual, activation, alpha)}"
    )
    return _filtered(low, node, problem, {"x": source, "residual": other}, Filter(weight.target), bias)


@_lowers(operators.conv_transpose2d)
def _conv_transpose2d(
    low, node, x, weight, bias=None, residual=None, *,
    stride=(1, 1), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1), groups=1, activation="none", alpha=0.0,
):  # fmt: skip
    """The input gradient of the convolution that goes the other way."""
    source, other = low.values[x], low.dense(residual) if residual is not None else None
    n, c, h, w = low.shapes[node].shape
    k, _, r, s = low.network.tensors.like(weight.target).shape
    behind = [p - o for p, o in zip(padding, output_padding, strict=True)]
    problem = (
        f"n{n}c{c}h{h}w{w}_k{k}r{r}s{s}_u{stride[0]}x{stride[1]}"
        f"_p{padding[0]}:{behind[0]}x{padding[1]}:{behind[1]}_d{dilation[0]}x{dilation[1]}_g{groups}"
        f"_{source.dtype}nhwc_dgrad{_words(bias, residual, activation, alpha)}"
    )
    return _filtered(low, node, problem, {"y": source, "residual": other}, Filter(weight.target), bias)


@_lowers(operators.linear)
def _linear(low, node, x, weight, bias=None, residual=None, *, activation="none", alpha=0.0):
    """A 1x1 convolution of one pixel for each row. Behind a flattening its columns are put in the order of the map."""
    source, rows = low.values[x], low.network.tensors.like(weight.target).shape[0]
    map = tuple(low.shapes[x.args[0]].shape[1:]) if x in low.by_pixels else None
    other = low.values[residual] if residual is not None else None
    words = _words(bias, residual, activation, alpha)
    problem = f"n{source.n}c{source.c}h1w1_k{rows}r1s1_{source.dtype}nhwc{words}"
    return _filtered(low, node, problem, {"x": source, "residual": other}, Filter(weight.target, map), bias)


def _filtered(low, node, problem, reads, filter, bias) -> Value:
    out = low.target(node)
    constants = {} if bias is None else {"bias": low.network.tensor(bias).detach()}
    low.emit(problem, reads, out, filter=filter, constants=constants)
    return out


@_lowers(operators.affine)
def _affine(low, node, x, scale, shift, residual=None, *, activation="none", alpha=0.0):
    source, out = low.values[x], low.target(node)
    other = low.dense(residual) if residual is not None else None
    arithmetic = torch.float64 if source.dtype == "f64" else torch.float32
    weight, bias = (low.network.tensor(t).detach().to(arithmetic) for t in (scale, shift))
    constants = {"w": weight, "bias": bias, "mean": torch.zeros_like(weight), "variance": torch.ones_like(weight)}
    words = _words(None, residual, activation, alpha)
    reads = {"x": source, "residual": other}
    low.emit(f"batchnorm2d_{source.head}_{source.dtype}nhwc{words}", reads, out, constants=constants)
    return out


@_lowers(operators.map2d)
def _map2d(low, node, x, scale=None, residual=None, *, activation="none", alpha=0.0):
    source, out = low.values[x], low.target(node)
    factor, other = (low.dense(v) if v is not None else None for v in (scale, residual))
    low.map2d(source, out, factor, other, _words(None, None, activation, alpha))
    return out


@_lowers(operators.max_pool2d)
def _max_pool2d(low, node, x, *, window, stride, padding=(0, 0), dilation=(1, 1), ceil_mode=False):
    words = f"_d{dilation[0]}x{dilation[1]}" + ("_ceil" if ceil_mode else "")
    return _pool(low, node, x, "maxpool2d", window, stride, padding, words)


@_lowers(operators.avg_pool2d)
def _avg_pool2d(
    low, node, x, *, window, stride, padding=(0, 0), ceil_mode=False, count_include_pad=True, divisor_override=None
):
    words = ("_ceil" if ceil_mode else "") + ("" if count_include_pad else "_nopad")
    words += f"_div{divisor_override}" if divisor_override else ""
    return _pool(low, node, x, "avgpool2d", window, stride, padding, words)


def _pool(low, node, x, op, window, stride, padding, words) -> Value:
    source, out = low.values[x], low.target(node)
    low.emit(
        f"{op}_{source.head}_r{window[0]}s{window[1]}_u{stride[0]}x{stride[1]}_p{padding[0]}x{padding[1]}"
        f"_{source.dtype}nhwc{words}",
        {"x": source},
        out,
    )
    return out


@_lowers(operators.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(low, node, x, *, size):
    return _sized(low, node, x, "adaptiveavg2d", size)


@_lowers(operators.adaptive_max_pool2d)
def _adaptive_max_pool2d(low, node, x, *, size):
    return _sized(low, node, x, "adaptivemax2d", size)


@_lowers(operators.bilinear2d)
def _bilinear2d(low, node, x, *, size, corners=False):
    return _sized(low, node, x, "bilinear2d", size, "_corners" if corners else "")


@_lowers(operators.nearest2d)
def _nearest2d(low, node, x, *, size):
    return _sized(low, node, x, "nearest2d", size)


def _sized(low, node, x, op, size, words="") -> Value:
    source, out = low.values[x], low.target(node)
    low.emit(f"{op}_{source.head}_o{size[0]}x{size[1]}_{source.dtype}nhwc{words}", {"x": source}, out)
    return out


@_lowers(operators.local_response_norm)
def _local_response_norm(low, node, x, *, size, alpha, beta, k):
    source, out = low.values[x], low.target(node)
    low.emit(f"lrn2d_{source.head}_size{size}_{source.dtype}nhwc", {"x": source}, out, response=(alpha, beta, k))
    return out


@_lowers(operators.cat)
def _cat(low, node, xs):
    """What was not written in its place is copied there."""
    whole, offset = low.slices.get(node, (node, 0))
    buffer = low.concat(whole)
    for x in xs:
        here = replace(value_of(low.shapes[x].shape, buffer.dtype, buffer.buffer), offset=offset, width=buffer.c)
        if low.values[x] != here:
            low.map2d(low.values[x], here)
        offset += here.c
    if whole is node:
        return buffer
    first = low.slices[node][1]
    return replace(value_of(low.shapes[node].shape, buffer.dtype, buffer.buffer), offset=first, width=buffer.c)


@_lowers(operators.flatten)
def _flatten(low, node, x):
    """A map of one pixel as it is, and any map for linear layers, which put their columns in its order."""
    source = low.dense(x)
    by_linear = all(user.target is operators.linear and user.args[0] is node for user in node.users)
    if not source.one_pixel:
        if by_linear and node not in low.outputs:
            low.by_pixels.add(node)
        else:
            source = low.reordered(source)
    return replace(source, c=source.c * source.h * source.w, h=1, w=1, layout="nhwc")
