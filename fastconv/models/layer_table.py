"""What every layer of a network makes of an image: size, parameters, products, and how much of the image it sees.

table = layer_table(create_model("alexnet"), torch.empty(1, 3, 224, 224))
print(table.parameters, table.multiply_adds, table.rows[0].formula)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastconv.models.tracing import evaluating, layer_of, trace

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_SEES_ALL = (nn.Linear, nn.Flatten)
_SPATIAL = 2  # axes of an image


class View(NamedTuple):
    """What one value of a map sees, along one axis, in pixels of the image.

    field: pixels that can change it; infinite where all can. jump: pixels between neighbours.
    """

    field: float = 1
    jump: Fraction = Fraction(1)

    def window(self, kernel: int, stride: int, dilation: int = 1) -> View:
        """Behind a window of `kernel` values, `dilation` apart, moved by `stride`."""
        return View(self.field + (kernel - 1) * dilation * self.jump, self.jump * stride)

    def transposed(self, kernel: int, stride: int) -> View:
        """Behind a transposed window: an output has ceil(kernel / stride) inputs."""
        return View(self.field + (math.ceil(kernel / stride) - 1) * self.jump, self.jump / stride)


WHOLE = View(math.inf)
UNKNOWN = View(math.nan)  # behind a function whose window cannot be told from its name
Views = tuple[View, View]  # vertical, horizontal


@dataclass(frozen=True)
class LayerRow:
    """One call of a layer, or a join of several maps. Shapes are [N, C, H, W] or [N, C]; bias adds are not counted."""

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    views: Views
    formula: str = ""  # of the output's height, where the layer has a window
    by_formula: tuple[int, int] | None = None


@dataclass(frozen=True)
class LayerTable:
    """All rows of a network, in the order of the calls."""

    rows: tuple[LayerRow, ...]
    idle_parameters: int  # of layers that run in training only

    @property
    def parameters(self) -> int:
        """Trainable values; a layer that is called twice counts once."""
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """Products of all convolutions and linear layers; FLOPs are twice as many."""
        return sum(row.multiply_adds for row in self.rows)


def layer_table(model: nn.Module, image: Tensor) -> LayerTable:
    """The layers of one forward pass in eval mode, with an image [N, C, H, W]; on the meta device it costs nothing.

    Layers are modules of torch.nn and fastconv.nn; sums, products and concatenations have rows of their own.
    Raises ValueError where the model decides by the values or sizes of its input.
    """
    with evaluating(model), torch.no_grad():
        walk = _Walk(trace(model))
        model(image)  # says what is wrong with the image better than a layer inside can
        walk.run(image)
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    return LayerTable(tuple(walk.rows), trainable - sum(row.parameters for row in walk.rows))


class _Walk(fx.Interpreter):
    """Runs the graph and writes a row for every layer and join; `views` follow the maps through it."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.rows: list[LayerRow] = []
        self.views: dict[fx.Node, Views] = {}
        self.counted: set[int] = set()

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.op == "output" or is_dataclass(result):  # settings of a function are no maps
            return result
        before = [other for other in node.all_input_nodes if other in self.views]
        maps = [other for other in before if other.op != "get_attr"]
        tensors = [other for other in before if isinstance(self.env[other], Tensor)]
        layer = layer_of(self.module, node)
        views = _join(self.views[other] for other in maps) if maps else (View(), View())
        output = result[0] if isinstance(result, tuple) else result  # a pool's output, beside its indices
        source = _source([self.env[other] for other in maps], output)
        views = _after_layer(layer, views, source) if layer else _after_function(node, views, source, output)
        self.views[node] = views
        join = len(tensors) > 1 and maps and not isinstance(node.target, type)  # a type names results, and joins none
        if isinstance(output, Tensor) and (layer is not None or join):
            held = layer.parameters() if layer else (self.env[other] for other in before if other.op == "get_attr")
            formula, sizes = _by_formula(layer, source)
            self.rows.append(
                LayerRow(
                    name=str(node.target) if layer else _path(node),
                    kind=_kind(layer) if layer else _function_name(node),
                    input_shape=tuple(source.shape),
                    output_shape=tuple(output.shape),
                    parameters=self._new_parameters(held),
                    multiply_adds=_multiply_adds(layer, source, output),
                    views=views,
                    formula=formula,
                    by_formula=sizes,
                )
            )
        return result

    def _new_parameters(self, held: Iterable[Tensor]) -> int:
        new = [value for value in held if value.requires_grad and id(value) not in self.counted]
        self.counted |= {id(value) for value in new}
        return sum(value.numel() for value in new)


def _source(maps: list[Any], output: Any) -> Any:
    """Of what a layer or function reads, the map of the output's size: a factor for each channel has one pixel."""
    if isinstance(output, Tensor):
        maps = sorted(maps, key=lambda one: not isinstance(one, Tensor) or one.shape[-2:] != output.shape[-2:])
    return maps[0] if maps else output


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _join(views: Iterable[Views]) -> Views:
    """Of several maps that are added or put together: the largest field, and the jump they share."""
    joined = []
    for axis in zip(*views, strict=True):
        fields = [view.field for view in axis]
        field = math.nan if any(map(math.isnan, fields)) else max(fields)
        joined.append(View(field, max(view.jump for view in axis)))
    return tuple(joined)


def _after_layer(layer: nn.Module, views: Views, source: Tensor) -> Views:
    if _unknown(views):
        return views
    if isinstance(layer, _SEES_ALL) or (isinstance(layer, _ADAPTIVE) and source.dim() == _SPATIAL + 2):
        same = isinstance(layer, _ADAPTIVE) and _pair(layer.output_size) == tuple(source.shape[-2:])
        return views if same else (WHOLE, WHOLE)
    if isinstance(layer, nn.ConvTranspose2d | nn.MaxUnpool2d):
        windows = zip(views, _pair(layer.kernel_size), _pair(layer.stride), strict=True)
        return tuple(view.transposed(*window) for view, *window in windows)
    if isinstance(layer, (nn.Conv2d, *_POOLS)):
        dilation = _pair(getattr(layer, "dilation", 1))
        windows = zip(views, _pair(layer.kernel_size), _pair(layer.stride), dilation, strict=True)
        return tuple(view.window(*window) for view, *window in windows)
    return views


def _after_function(node: fx.Node, views: Views, source: Any, output: Any) -> Views:
    """A slice may take every n-th pixel; a function that leaves no map, or one pixel, has seen all of it."""
    known = isinstance(source, Tensor) and isinstance(output, Tensor) and not _unknown(views)
    if not known or source.dim() != _SPATIAL + 2:
        return views
    if node.target is operator.getitem and isinstance(node.args[1], tuple):
        steps = [part.step or 1 if isinstance(part, slice) else 1 for part in node.args[1]][2:]
        steps += [1] * (_SPATIAL - len(steps))
        return tuple(View(view.field, view.jump * step) for view, step in zip(views, steps, strict=True))
    before, after = source.shape[-2:], output.shape[-2:] if output.dim() == source.dim() else (1, 1)
    if before == after or _function_name(node) == "pad":
        return views
    return (WHOLE, WHOLE) if after == (1, 1) else (UNKNOWN, UNKNOWN)


def _unknown(views: Views) -> bool:
    """Behind a region, which may be anywhere, or a function nobody knows: so is what follows."""
    return any(math.isnan(view.field) for view in views)


def _by_formula(layer: nn.Module | None, source: Tensor) -> tuple[str, tuple[int, int] | None]:
    """The formula of the output's height with its numbers in it, and the output's (height, width) by it."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    if not (transposed or isinstance(layer, (nn.Conv2d, *_POOLS))) or isinstance(layer.padding, str):
        return "", None
    geometry = zip(
        source.shape[-2:],
        _pair(layer.kernel_size),
        _pair(layer.stride),
        _pair(layer.padding),
        _pair(getattr(layer, "dilation", 1)),
        _pair(getattr(layer, "output_padding", 0)),
        strict=True,
    )
    ceil = getattr(layer, "ceil_mode", False)
    texts, sizes = [], []
    for size, kernel, stride, padding, dilation, extra in geometry:
        reach = dilation * (kernel - 1) + 1
        if transposed:
            sizes.append((size - 1) * stride - 2 * padding + reach + extra)
            tail = f" + {extra}" if extra else ""
            texts.append(f"({size} - 1) * {stride} - 2 * {padding} + {reach}{tail} = {sizes[-1]}")
            continue
        steps = Fraction(size + 2 * padding - reach, stride)
        count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        if ceil and (count - 1) * stride >= size + padding:  # a window must not begin behind the image
            count -= 1
        sizes.append(count)
        rounding = "ceil" if ceil else "floor"
        texts.append(f"{rounding}(({size} + 2 * {padding} - {reach}) / {stride}) + 1 = {count}")
    return texts[0], (sizes[0], sizes[1])


def _multiply_adds(layer: nn.Module | None, source: Tensor, output: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    if isinstance(layer, nn.Conv2d):
        return output.numel() * layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d):
        return source.numel() * layer.weight[0].numel()
    return 0


def _kind(layer: nn.Module) -> str:
    """ "Conv2d 11x11/4": the class, and window and stride where it has them."""
    name = type(layer).__name__
    if not hasattr(layer, "kernel_size"):
        return name
    text = f"{name} {'x'.join(map(str, _pair(layer.kernel_size)))}/{_pair(layer.stride)[0]}"
    groups = getattr(layer, "groups", 1)
    return text if groups == 1 else f"{text} groups {groups}"


def _function_name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _path(node: fx.Node) -> str:
    """The module in whose forward a function is called."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack)) if stack else ""
