"""From PyTorch's operators to those of :mod:`fastconv.graph.operators`: one rule an operator, in one table.

A rule takes a node's arguments by the names of the operator's schema, and the node as "node", and returns the call that
replaces it, the node that does (for what changes nothing), or None where it does not apply; then the node stays
PyTorch's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastconv.graph import operators
from fastconv.kernels.aten_map import takes_torch_s_pixels

aten = torch.ops.aten

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that is to stand in a node's place. Among its arguments may be calls, which come first."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


Rule = Callable[[Arguments], "Call | fx.Node | None"]
RULES: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def translate(graph: fx.Graph) -> None:
    """Replaces every node that has a rule, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        # What a plan hands over has its own strides, and nothing writes into a view any more.
        node.target = _BY_VALUE.get(node.target, node.target)
        if node.target not in RULES or not _first_alone(node):
            continue
        new = RULES[node.target](arguments(node) | {"node": node})
        if isinstance(new, Call):
            value = node.meta.get("val")
            value = value[0] if isinstance(value, tuple | list) else value
            with graph.inserting_before(node):
                new = _made(graph, new, {"val": value, "name": node.name})
        if new is not None:
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _made(graph: fx.Graph, call: Call, meta: dict[str, Any]) -> fx.Node:
    """The node of a call, whose arguments may be calls too; of theirs, only the dtype is told."""
    args = []
    for argument in call.args:
        if isinstance(argument, Call):
            argument = _made(graph, argument, {**meta, "val": torch.empty(0, dtype=meta["val"].dtype, device="meta")})
        args.append(argument)
    node = graph.call_function(call.function, tuple(args), call.options)
    node.meta = dict(meta)
    return node


def _first_alone(node: fx.Node) -> bool:
    """Whether of several results only the first is used, as the operators here return no other."""
    if not isinstance(node.meta.get("val"), tuple | list):
        return True
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


_BY_VALUE = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def arguments(node: fx.Node) -> Arguments:
    """The arguments of a call of an operator by name, defaults included."""
    if not hasattr(node.target, "_schema"):
        return dict(enumerate(node.args)) | node.kwargs
    names = node.target._schema.arguments
    values = {a.name: a.default_value for a in names if a.has_default_value()}
    values |= {a.name: value for a, value in zip(names, node.args, strict=False)}
    return values | node.kwargs


def shape(node: Any) -> tuple[Any, ...] | None:
    """The shape of a node's tensor; sizes that vary are symbols."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def same(one: Any, other: Any) -> bool:
    """Whether two shapes are known to be equal."""
    return len(one) == len(other) and all(statically_known_true(a == b) for a, b in zip(one, other, strict=True))


def rank(node: Any) -> int:
    sizes = shape(node)
    return -1 if sizes is None else len(sizes)


def dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dtype if isinstance(value, torch.Tensor) else None


def pair(values: Any) -> tuple[int, int] | None:
    """One or two numbers as two; None where one of them varies."""
    values = [values] if isinstance(values, int) else list(values)
    if not all(isinstance(v, int) for v in values):
        return None
    return (values[0], values[-1])


def _sides(padding: tuple[int, int]) -> operators.Sides:
    return (padding[0], padding[0]), (padding[1], padding[1])


@rule(aten.conv2d.default)
def _conv2d(a: Arguments) -> Call | None:
    if rank(a["input"]) != 4:
        return None
    options = {name: pair(a[name]) for name in ("stride", "padding", "dilation")}
    options |= {"padding": _sides(options["padding"]), "groups": a["groups"]}
    return Call(operators.conv2d, (a["input"], a["weight"], a["bias"]), options)


@rule(aten.conv2d.padding)
def _conv2d_named_padding(a: Arguments) -> Call | None:
    if rank(a["input"]) != 4:
        return None
    dilation, stride = pair(a["dilation"]), pair(a["stride"])
    padding = ((0, 0), (0, 0))
    if a["padding"] == "same":  # an odd pixel goes behind
        total = [d * (window - 1) for d, window in zip(dilation, shape(a["weight"])[2:], strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in total)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": a["groups"]}
    return Call(operators.conv2d, (a["input"], a["weight"], a["bias"]), options)


@rule(aten.conv_transpose2d.input)
def _conv_transpose2d(a: Arguments) -> Call | None:
    if rank(a["input"]) != 4:
        return None
    options = {name: pair(a[name]) for name in ("stride", "padding", "output_padding", "dilation")}
    return Call(operators.conv_transpose2d, (a["input"], a["weight"], a["bias"]), options | {"groups": a["groups"]})


@rule(aten.convolution.default)
def _convolution(a: Arguments) -> Call | None:
    return (_conv_transpose2d if a["transposed"] else _conv2d)(a)


@rule(aten.linear.default)
def _linear(a: Arguments) -> Call:
    return Call(operators.linear, (a["input"], a["weight"], a["bias"]))


@rule(aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
def _batch_norm(a: Arguments) -> Call | None:
    if a.get("training") or rank(a["input"]) != 4 or a["running_mean"] is None:
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    return Call(batch_norm, (a["input"], *(a[name] for name in names)), {"eps": a["eps"]})


def batch_norm(x, weight, bias, mean, variance, *, eps):
    """In inference. The first pass turns it into operators.affine or folds it into a convolution."""
    return torch.nn.functional.batch_norm(x, mean, variance, weight, bias, eps=eps)


@rule(operator.getitem)
def _first_result(a: Arguments) -> fx.Node | None:
    """Of a batch norm or pool that returns more than its operator here does."""
    known = (batch_norm, operators.max_pool2d, operators.adaptive_max_pool2d)
    return a[0] if isinstance(a[0], fx.Node) and a[0].target in known and a[1] == 0 else None


def _activation(name: str) -> Rule:
    def activate(a: Arguments) -> Call | None:
        x = a["self"]
        if dtype(x) is None or not dtype(x).is_floating_point:
            return None
        return Call(operators.map2d, (x,), {"activation": name})

    return activate


for _name in ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid"):
    rule(getattr(aten, _name).default)(_activation(_name))


@rule(aten.hardtanh.default)
def _hardtanh(a: Arguments) -> Call | None:
    return _activation("relu6")(a) if (a["min_val"], a["max_val"]) == (0, 6) else None


@rule(aten.gelu.default)
def _gelu(a: Arguments) -> Call | None:
    return _activation("gelu" if a["approximate"] == "none" else "gelutanh")(a)


@rule(aten.leaky_relu.default)
def _leaky_relu(a: Arguments) -> Call:
    return Call(operators.map2d, (a["self"],), {"activation": "leaky_relu", "alpha": float(a["negative_slope"])})


@rule(aten.add.Tensor)
def _add(a: Arguments) -> Call | None:
    x, y = a["self"], a["other"]
    same = shape(x) is not None and shape(x) == shape(y) and dtype(x) == dtype(y) and dtype(x).is_floating_point
    return Call(operators.map2d, (x, None, y)) if same and a["alpha"] == 1 else None


@rule(aten.mul.Tensor)
def _mul(a: Arguments) -> Call | None:
    """A factor for each image and channel, as squeeze and excitation has it."""
    for x, scale in ((a["self"], a["other"]), (a["other"], a["self"])):
        if rank(x) == rank(scale) == 4 and dtype(x) == dtype(scale) and dtype(x).is_floating_point:
            (n, c, *_), small = shape(x), shape(scale)
            if small == (n, c, 1, 1) and shape(x) != small:
                return Call(operators.map2d, (x, scale))
    return None


@rule(aten.max_pool2d.default, aten.max_pool2d_with_indices.default)
def _max_pool2d(a: Arguments) -> Call | None:
    if rank(a["self"]) != 4:
        return None
    window = pair(a["kernel_size"])
    options = {"padding": pair(a["padding"]), "dilation": pair(a["dilation"]), "ceil_mode": a["ceil_mode"]}
    stride = pair(a["stride"]) if a["stride"] else window
    return Call(operators.max_pool2d, (a["self"],), {"window": window, "stride": stride, **options})


@rule(aten.avg_pool2d.default)
def _avg_pool2d(a: Arguments) -> Call | None:
    if rank(a["self"]) != 4:
        return None
    window = pair(a["kernel_size"])
    options = {name: a[name] for name in ("ceil_mode", "count_include_pad", "divisor_override")}
    options |= {"stride": pair(a["stride"]) if a["stride"] else window, "padding": pair(a["padding"])}
    return Call(operators.avg_pool2d, (a["self"],), {"window": window} | options)


@rule(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def _adaptive_avg_pool2d(a: Arguments) -> Call | None:
    size = pair(a["output_size"])
    return Call(operators.adaptive_avg_pool2d, (a["self"],), {"size": size}) if rank(a["self"]) == 4 and size else None


@rule(aten.adaptive_max_pool2d.default)
def _adaptive_max_pool2d(a: Arguments) -> Call | None:
    size = pair(a["output_size"])
    return Call(operators.adaptive_max_pool2d, (a["self"],), {"size": size}) if rank(a["self"]) == 4 and size else None


@rule(aten.mean.dim)
def _mean(a: Arguments) -> Call | None:
    """Over the maps, kept as 1x1 or not."""
    over_maps = rank(a["self"]) == 4 and sorted(d % 4 for d in a["dim"] or ()) == [2, 3]
    if not over_maps or a["dtype"] is not None:
        return None
    mean = Call(operators.adaptive_avg_pool2d, (a["self"],), {"size": (1, 1)})
    return mean if a["keepdim"] else Call(operators.flatten, (mean,))


@rule(aten.upsample_bilinear2d.vec)
def _bilinear(a: Arguments) -> Call | None:
    size = pair(a["output_size"]) if a["output_size"] is not None else None
    if not size:
        return None
    return Call(operators.bilinear2d, (a["input"],), {"size": size, "corners": a["align_corners"]})


@rule(aten.upsample_nearest2d.vec)
def _nearest(a: Arguments) -> Call | None:
    """Where both ways to a pixel's place lead to the same pixels."""
    sizes, factors = shape(a["input"])[2:], a["scale_factors"] or (None, None)
    if not all(isinstance(size, int) for size in sizes):
        return None
    out = pair(a["output_size"]) if a["output_size"] else tuple(int(s * f) for s, f in zip(sizes, factors, strict=True))
    if not out or not all(map(takes_torch_s_pixels, sizes, out, factors)):
        return None
    return Call(operators.nearest2d, (a["input"],), {"size": out})


@rule(aten.cat.default)
def _cat(a: Arguments) -> Call | None:
    xs = a["tensors"]
    if any(rank(x) != 4 for x in xs) or a["dim"] % 4 != 1 or len({dtype(x) for x in xs}) > 1:
        return None
    return Call(operators.cat, (list(xs),))


@rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(a: Arguments) -> Call | None:
    sides = list(a["pad"])
    if rank(a["self"]) != 4 or a["value"] not in (0, None) or a.get("mode", "constant") != "constant":
        return None
    if len(sides) != 4 or min(sides) < 0:
        return None
    return Call(operators.pad, (a["self"],), {"padding": ((sides[2], sides[3]), (sides[0], sides[1]))})


@rule(aten.flatten.using_ints)
def _flatten(a: Arguments) -> Call | None:
    whole = rank(a["self"]) == 4 and a["start_dim"] == 1 and a["end_dim"] in (-1, 3)
    return Call(operators.flatten, (a["self"],)) if whole else reshaped(a)


def reshaped(a: Arguments) -> Call | None:
    """Elements in their order under another shape; at most one of its sizes may vary."""
    sizes = shape(a["node"])
    size = tuple(s if isinstance(s, int) else -1 for s in sizes) if sizes is not None else (-1, -1)
    return Call(operators.reshape, (a["self"],), {"size": size}) if size.count(-1) < 2 and 0 not in size else None


@rule(aten.reshape.default)
def _view(a: Arguments) -> Call | None:
    """A flattening written out: N C H W to N, C·H·W."""
    x = a["self"]
    size = list(a["shape"])
    if rank(x) != 4 or len(size) != 2:
        return reshaped(a)
    n, c, h, w = shape(x)
    if not all(isinstance(v, int) for v in (c, h, w)):
        return reshaped(a)
    batch = size[0].meta.get("val") if isinstance(size[0], fx.Node) else size[0]
    return Call(operators.flatten, (x,)) if batch == n and size[1] in (-1, c * h * w) else reshaped(a)


@rule(aten.dropout.default, aten.feature_dropout.default)
def _dropout(a: Arguments) -> fx.Node | None:
    return None if a["train"] and a["p"] > 0 else a["input"] if "input" in a else a["self"]


@rule(
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default
)
def _same(a: Arguments) -> fx.Node:
    """Values do not change, and nothing writes into them."""
    return a["self"]
