"""The rules of :mod:`fastconv.graph.translate` for this library's own operators, which swapped models are made of."""

from __future__ import annotations

import torch

from fastconv._native import C as _loads_the_operators  # noqa: F401
from fastconv.graph import operators
from fastconv.graph.translate import Arguments, Call, batch_norm, pair, rank, rule, shape

own = torch.ops.fastconv


def _sides(padding: list[int]) -> operators.Sides:
    top, bottom, left, right = padding
    return (top, bottom), (left, right)


@rule(own.conv2d.default, own.conv2d_act.default)
def _conv2d(a: Arguments) -> Call | None:
    sides = _sides(a["padding"])
    if min(min(side) for side in sides) < 0:
        return None
    options = {"stride": pair(a["stride"]), "dilation": pair(a["dilation"]), "groups": a["groups"], "padding": sides}
    if "activation" in a:
        options |= {"activation": a["activation"], "alpha": float(a["alpha"])}
    return Call(operators.conv2d, (a["x"], a["weight"], a["bias"], a.get("residual")), options)


@rule(own.conv2d_dgrad.default)
def _conv_transpose2d(a: Arguments) -> Call | None:
    """As torch states it: the same padding on both sides, and what the output has more behind."""
    size, stride, dilation = pair(a["input_size"]), pair(a["stride"]), pair(a["dilation"])
    before = tuple(side[0] for side in _sides(a["padding"]))
    if size is None or rank(a["dy"]) != 4:
        return None
    given, window = shape(a["dy"])[2:], shape(a["weight"])[2:]
    least = [(given[i] - 1) * stride[i] - 2 * before[i] + dilation[i] * (window[i] - 1) + 1 for i in range(2)]
    extra = tuple(size[i] - least[i] for i in range(2))
    if any(not 0 <= extra[i] < max(stride[i], dilation[i]) for i in range(2)):
        return None
    options = {"stride": stride, "padding": before, "output_padding": extra, "dilation": dilation}
    return Call(operators.conv_transpose2d, (a["dy"], a["weight"], a["bias"]), options | {"groups": a["groups"]})


@rule(own.batch_norm_inference.default)
def _batch_norm(a: Arguments) -> Call | None:
    if rank(a["x"]) != 4 or a["running_mean"] is None:
        return None
    names = ("x", "weight", "bias", "running_mean", "running_var")
    return Call(batch_norm, tuple(a[name] for name in names), {"eps": a["eps"]})


@rule(own.max_pool2d.default)
def _max_pool2d(a: Arguments) -> Call:
    options = {"window": pair(a["kernel_size"]), "ceil_mode": a["ceil_mode"]}
    options |= {name: pair(a[name]) for name in ("stride", "padding", "dilation")}
    return Call(operators.max_pool2d, (a["x"],), options)


@rule(own.avg_pool2d.default)
def _avg_pool2d(a: Arguments) -> Call:
    options = {"window": pair(a["kernel_size"]), "stride": pair(a["stride"]), "padding": pair(a["padding"])}
    options |= {name: a[name] for name in ("ceil_mode", "count_include_pad", "divisor_override")}
    return Call(operators.avg_pool2d, (a["x"],), options)


@rule(own.adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(a: Arguments) -> Call | None:
    size = pair(a["output_size"])
    return Call(operators.adaptive_avg_pool2d, (a["x"],), {"size": size}) if size else None


@rule(own.adaptive_max_pool2d.default)
def _adaptive_max_pool2d(a: Arguments) -> Call | None:
    size = pair(a["output_size"])
    return Call(operators.adaptive_max_pool2d, (a["x"],), {"size": size}) if size else None


@rule(own.local_response_norm.default)
def _local_response_norm(a: Arguments) -> Call:
    options = {"size": a["size"], "alpha": a["alpha"], "beta": a["beta"], "k": a["k"]}
    return Call(operators.local_response_norm, (a["x"],), options)
