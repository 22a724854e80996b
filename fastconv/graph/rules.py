"""How each operator becomes steps: one rule an operator, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fastconv.graph import operators, views
from fastconv.graph.values import DTYPES, Filter, Value, value_of
from fastconv.graph.views import View

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
    source, other = low.value(x), low.dense(residual) if residual is not None else None
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
    source, other = low.value(x), low.dense(residual) if residual is not None else None
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
    (source, outer), rows = low.rows(x), low.network.tensors.like(weight.target).shape[0]
    map = tuple(low.shapes[x.args[0]].shape[1:]) if x in low.by_pixels else None
    other = low.compact(low.rows_in(residual, outer)) if residual is not None else None
    words = _words(bias, residual, activation, alpha)
    problem = f"n{source.n}c{source.c}h1w1_k{rows}r1s1_{source.dtype}nhwc{words}"
    out = replace(low.fresh(low.shapes[node].shape, source.dtype), n=source.n, c=rows, h=1, w=1)
    _filtered(low, node, problem, {"x": source, "residual": other}, Filter(weight.target, map), bias, out)
    return low.of_rows(out, node, outer)


def _filtered(low, node, problem, reads, filter, bias, out=None) -> Value:
    out = out or low.target(node)
    constants = {} if bias is None else {"bias": low.network.tensor(bias).detach()}
    low.emit(problem, reads, out, filter=filter, constants=constants)
    return out


@_lowers(operators.affine)
def _affine(low, node, x, scale, shift, residual=None, *, activation="none", alpha=0.0):
    source, out = low.value(x), low.target(node)
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
    words = _words(None, None, activation, alpha)
    if scale is None and node not in low.slices and (low.lies_in_rows(x) or (residual and low.lies_in_rows(residual))):
        (source, outer) = low.rows(x if low.lies_in_rows(x) else residual)
        source = source if low.lies_in_rows(x) else low.rows_in(x, outer)
        other = low.compact(low.rows_in(residual, outer)) if residual is not None else None
        out = replace(low.fresh(low.shapes[node].shape, source.dtype), n=source.n, c=source.c, h=1, w=1)
        low.map2d(source, out, None, other, words)
        return low.of_rows(out, node, outer)
    source, out = low.value(x), low.target(node)
    factor, other = (low.dense(v) if v is not None else None for v in (scale, residual))
    low.map2d(source, out, factor, other, words)
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
    source, out = low.value(x), low.target(node)
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
    source, out = low.value(x), low.target(node)
    low.emit(f"{op}_{source.head}_o{size[0]}x{size[1]}_{source.dtype}nhwc{words}", {"x": source}, out)
    return out


@_lowers(operators.local_response_norm)
def _local_response_norm(low, node, x, *, size, alpha, beta, k):
    source, out = low.value(x), low.target(node)
    low.emit(
        f"lrn2d_{source.head}_size{size}_{source.dtype}nhwc", {"x": source}, out, numbers={"response": (alpha, beta, k)}
    )
    return out


@_lowers(operators.cat)
def _cat(low, node, xs):
    """What was not written in its place is copied there."""
    whole, offset = low.slices.get(node, (node, 0))
    buffer = low.concat(whole)
    for x in xs:
        here = replace(value_of(low.shapes[x].shape, buffer.dtype, buffer.buffer), offset=offset, width=buffer.c)
        if low.value(x) != here:
            low.map2d(low.value(x), here)
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


# --- rows -------------------------------------------------------------------------------------------------------------


@_lowers(operators.row_affine)
def _row_affine(low, node, x, scale, shift):
    """Rows of as many columns as the constants have elements; of a number, whatever lies together."""
    given = [None if t is None else low.network.tensor(t).detach() for t in (scale, shift)]
    like = next(t for t in given if t is not None)
    in_rows = like.numel() > 1 or low.lies_in_rows(x)
    source, outer = low.rows(x, like.dim()) if in_rows else (low.value(x), None)
    arithmetic = torch.float64 if source.dtype == "f64" else torch.float32
    weight, bias = (
        torch.full((source.c,), fill, dtype=arithmetic)
        if t is None
        else t.reshape(-1).to(arithmetic).expand(source.c).contiguous()
        for t, fill in zip(given, (1.0, 0.0), strict=True)
    )
    constants = {"w": weight, "bias": bias, "mean": torch.zeros_like(weight), "variance": torch.ones_like(weight)}
    if in_rows:
        return _by_rows(low, node, "batchnorm2d", source, outer, constants=constants)
    out = low.target(node)
    low.emit(f"batchnorm2d_{source.head}_{source.dtype}nhwc", {"x": source}, out, constants=constants)
    return out


@_lowers(operators.leading_tokens)
def _leading_tokens(low, node, x, tokens):
    """Both are written into their part of each image's row of tokens."""
    n, count, channels = low.shapes[node].shape
    dtype, first = DTYPES[low.shapes[node].dtype], low.network.tensor(tokens).detach().flatten()
    whole = replace(low.fresh((n, count, channels), dtype), n=n, c=count * channels)
    place = replace(whole, c=len(first), width=whole.c)
    low.emit(
        f"map2d_{place.head}_{dtype}nhwc", {}, place, constants={"x": first.expand(n, -1).contiguous()[..., None, None]}
    )
    rest = replace(place, c=whole.c - len(first), offset=len(first))
    low.map2d(replace(low.compact(low.ordered_rows(x)), n=n, c=rest.c, h=1, w=1), rest)
    return views.dense(whole.buffer, dtype, (n, count, channels))


@_lowers(operators.layer_norm)
def _layer_norm(low, node, x, weight=None, bias=None, *, axes, eps):
    source, outer = low.rows(x, axes)
    arithmetic = torch.float64 if source.dtype == "f64" else torch.float32
    named = {"w": weight, "bias": bias}
    constants = {
        name: low.network.tensor(t).detach().reshape(-1).to(arithmetic) for name, t in named.items() if t is not None
    }
    return _by_rows(low, node, "layernorm2d", source, outer, constants=constants, numbers={"eps": eps})


@_lowers(operators.softmax)
def _softmax(low, node, x):
    return _by_rows(low, node, "softmax2d", *low.rows(x))


def _by_rows(low, node, op, source, outer, **rest) -> Value | View:
    out = replace(low.fresh(low.shapes[node].shape, source.dtype), n=source.n, c=source.c, h=1, w=1)
    low.emit(f"{op}_{source.head}_{source.dtype}nhwc", {"x": source}, out, **rest)
    return low.of_rows(out, node, outer)


@_lowers(operators.attention)
def _attention(low, node, queries, keys, values, mask=None, *, factor=None):
    """Each token's heads beside each other in the result. Tokens are read where they lie, if their channels do so
    together."""
    n, heads, count, wide = low.shapes[node].shape
    depth, tokens = low.shapes[keys].shape[3], low.shapes[keys].shape[2]
    given = {name: low.together(t) for name, t in (("x", queries), ("keys", keys), ("values", values))}
    constants, scores = {}, (n, heads, count, tokens)
    if mask is not None and low.network.is_constant(mask):
        constants["mask"] = low.network.tensor(mask).detach().expand(scores)
    elif mask is not None:
        given["mask"] = low.view(mask).through(lambda t: t.expand(scores))
    dtype = given["x"].dtype
    reads = {name: Value(view.buffer, 1, view.whole, 1, 1, dtype) for name, view in given.items()}
    out = low.fresh((n, heads * wide, count, 1), dtype)
    words = "" if mask is None else "_mask"
    problem = f"attention_n{n}c{heads * depth}h{count}w1_k{heads * wide}r{tokens}s1_g{heads}_{dtype}nhwc{words}"
    strided = {name: view.place for name, view in given.items()}
    numbers = {"factor": depth**-0.5 if factor is None else factor}
    low.emit(problem, reads, out, constants=constants, numbers=numbers, strided=strided)
    return views.dense(out.buffer, dtype, (n, count, heads, wide)).through(lambda t: t.permute(0, 2, 1, 3))


# --- views ------------------------------------------------------------------------------------------------------------


@_lowers(*operators.VIEWS)
def _view(low, node, x, **options):
    """Nothing is computed, unless a reshape joins axes that lie apart."""
    made = low.view(x)
    if node.target is operators.reshape:
        shape = low.shapes[node].shape
        try:
            return made.through(lambda t: t.view(shape))
        except RuntimeError:
            return _joined(low, made, shape)
    return made.through(lambda t: node.target(t, **options))


def _joined(low, made, shape) -> View:
    """A reshape of axes that lie apart: a copy, of maps that stay maps with the channels innermost."""
    maps = len(shape) == 4 and made.tensor.dim() > 3 and made.tensor.shape[-2:] == shape[-2:]
    if not maps:
        return views.dense(low.in_order(made).buffer, made.dtype, shape)
    n, c, h, w = shape
    pixels = low.in_order(made.through(lambda t: t.movedim((-2, -1), (1, 2))))
    return views.dense(pixels.buffer, made.dtype, (n, h, w, c)).through(lambda t: t.permute(0, 3, 1, 2))
