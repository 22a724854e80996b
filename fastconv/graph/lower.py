"""From a graph of operators to the steps of a program: problems, kernels, and where every operand lies.

Inside a program activations are channels_last. A concatenation is a buffer, and what flows into it is written to its
channels in place where the kernel can; a concatenation that begins another one (as each layer's input does in a
DenseNet) is a slice of that one's buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from fastconv._native import C
from fastconv.graph import memory, operators
from fastconv.graph.network import Network
from fastconv.graph.select import Selection
from fastconv.problem import Problem

_DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}
DTYPES = tuple(_DTYPES)


@dataclass(eq=False)
class Buffer:
    """Memory of a value: a block of the arena, or an input or output of the program."""

    where: str  # "arena", "input", "output"
    number: int = 0
    block: memory.Block | None = None


@dataclass(frozen=True)
class Value:
    """A tensor of a program: N C H W in a buffer, as channels_last unless said otherwise.

    offset, width: it is channels [offset, offset + C) of a buffer of ``width``; width 0: dense.
    """

    buffer: Buffer
    n: int
    c: int
    h: int
    w: int
    dtype: str
    layout: str = "nhwc"
    offset: int = 0
    width: int = 0

    @property
    def elements(self) -> int:
        return self.n * self.c * self.h * self.w

    @property
    def one_pixel(self) -> bool:
        return self.h == self.w == 1

    @property
    def head(self) -> str:
        """The words of a problem that describe it."""
        return f"n{self.n}c{self.c}h{self.h}w{self.w}"


@dataclass
class Step:
    """One call of one kernel. ``reads`` and ``writes`` are values by the names of kernel.h's Args."""

    selection: Selection
    reads: dict[str, Value]
    out: Value
    constants: dict[str, Tensor] = field(default_factory=dict)
    eps: float = 0.0
    response: tuple[float, float, float] | None = None
    origin: str = ""
    workspace: memory.Block | None = None


@dataclass(frozen=True)
class Lowered:
    """A program before it is handed to the extension."""

    steps: list[Step]
    inputs: list[Any]
    outputs: list[Any]
    arena_bytes: int
    threads: int

    def program(self) -> Any:
        """The extension's form of it."""
        return C.Program([_as_dict(step) for step in self.steps], self.inputs, self.outputs, self.arena_bytes, self.threads)


def lower(
    network: Network,
    nodes: Sequence[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    examples: Sequence[Tensor],
    select: Callable[[Problem], Selection],
    pack: Callable[[Selection, str, Tensor], Tensor],
) -> Lowered:
    """The program of some nodes for inputs of the examples' shapes and strides.

    select: chooses a kernel. pack: a filter in a kernel's form, by the name it has here.
    """
    return _Lowering(network, nodes, inputs, outputs, examples, select, pack).result()


class _Lowering:
    def __init__(self, network, nodes, inputs, outputs, examples, select, pack):
        self.network, self.nodes = network, nodes
        self.inputs, self.outputs, self.examples = inputs, outputs, examples
        self.select, self.pack = select, pack
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Value] = {}
        self.shapes = _shapes(network, nodes, inputs, examples)
        self.channels_last = any(_is_channels_last(t) for t in examples if t.ndim == 4)
        self.slices = _slices(nodes, self.shapes, set(outputs))
        self.concats: dict[fx.Node, Value] = {}  # the outermost concatenations
        self.by_pixels: set[fx.Node] = set()  # flattened maps that lie in the order of their pixels

    def result(self) -> Lowered:
        borders = [C.Border(list(t.shape), list(t.stride()), t.dtype) for t in self.examples]
        for number, (node, example) in enumerate(zip(self.inputs, self.examples, strict=True)):
            self.values[node] = self._input(number, example)
        for node in self.nodes:
            self.origin = node.meta.get("name", node.name)
            self.values[node] = LOWER[node.target](self, node, *node.args, **node.kwargs)
        self.origin = "output"
        results = [self._output(number, node) for number, node in enumerate(self.outputs)]
        return self._place(borders, results)

    # --- values -----------------------------------------------------------------------------------------------------

    def _input(self, number: int, example: Tensor) -> Value:
        value = _value_of(example.shape, _DTYPES[example.dtype], Buffer("input", number))
        if example.ndim != 4 or value.one_pixel or _is_channels_last(example):
            return value
        return self.reordered(replace(value, layout="nchw"))

    def fresh(self, like: torch.Size | tuple[int, ...], dtype: str) -> Value:
        value = _value_of(like, dtype, Buffer("arena"))
        value.buffer.block = memory.Block(value.elements * _bytes(dtype), len(self.steps), len(self.steps))
        return value

    def target(self, node: fx.Node) -> Value:
        """Where a node's result goes: its channels of a concatenation, or memory of its own."""
        dtype = _DTYPES[self.shapes[node].dtype]
        if node not in self.slices:
            return self.fresh(self.shapes[node].shape, dtype)
        whole, offset = self.slices[node]
        buffer = self.concat(whole)
        return replace(_value_of(self.shapes[node].shape, dtype, buffer.buffer), offset=offset, width=buffer.c)

    def concat(self, node: fx.Node) -> Value:
        if node not in self.concats:
            self.concats[node] = self.fresh(self.shapes[node].shape, _DTYPES[self.shapes[node].dtype])
        return self.concats[node]

    def dense(self, node: fx.Node) -> Value:
        """The node's value without gaps between its pixels."""
        value = self.values[node]
        if not value.width:
            return value
        out = self.fresh(self.shapes[node].shape, value.dtype)
        self.map2d(value, out)
        return out

    def reordered(self, value: Value) -> Value:
        """A dense value in the other layout."""
        other = "nhwc" if value.layout == "nchw" else "nchw"
        out = replace(self.fresh((value.n, value.c, value.h, value.w), value.dtype), layout=other)
        self.emit(f"reorder2d_{value.head}_{value.dtype}{value.layout}", {"x": value}, out)
        return out

    def _output(self, number: int, node: fx.Node) -> Any:
        """Brings a node's value into the tensor that is handed out."""
        value, shape = self.values[node], self.shapes[node]
        nhwc = len(shape.shape) == 4 and self.channels_last
        format = torch.channels_last if nhwc else torch.contiguous_format
        strides = torch.empty(shape.shape, device="meta").contiguous(memory_format=format).stride()
        out = replace(_value_of(shape.shape, value.dtype, Buffer("output", number)), layout="nhwc")
        if len(shape.shape) == 4 and not nhwc and not value.one_pixel:
            out = replace(out, layout="nchw")
            value = self.dense(node)
            self.emit(f"reorder2d_{value.head}_{value.dtype}{value.layout}", {"x": value}, out)
        elif not self._redirect(value, out):
            self.map2d(value, out)
        return C.Border(list(shape.shape), list(strides), shape.dtype)

    def _redirect(self, value: Value, out: Value) -> bool:
        """Lets the step that wrote a value write it where it is handed out, if nobody else has it in its arena place."""
        writers = [step for step in self.steps if step.out.buffer is value.buffer]
        if value.width or value.buffer.where != "arena" or len(writers) != 1:
            return False
        value.buffer.where, value.buffer.number, value.buffer.block = "output", out.buffer.number, None
        return True

    # --- steps ------------------------------------------------------------------------------------------------------

    def emit(self, problem: str, reads: dict[str, Value | None], out: Value, **rest: Any) -> None:
        """Appends a step. Slices and dtype-independent words are added here."""
        reads = {name: value for name, value in reads.items() if value is not None}
        source = reads.get("x", reads.get("y"))
        if source.width:
            problem += f"_in{source.offset}of{source.width}"
        if out.width:
            problem += f"_out{out.offset}of{out.width}"
        weight = rest.pop("weight", None)
        selection = self.select(Problem(problem))
        constants = rest.pop("constants", {})
        if weight is not None:
            name, filter = weight
            packed = selection.problem.packed
            constants["packed" if packed else "w"] = self.pack(selection, name, filter) if packed else filter
        self.steps.append(Step(selection, reads, out, constants, origin=self.origin, **rest))

    def map2d(
        self, x: Value, out: Value, scale: Value | None = None, residual: Value | None = None, words: str = ""
    ) -> None:
        words = ("_scale" if scale else "") + ("_res" if residual else "") + words
        self.emit(f"map2d_{x.head}_{x.dtype}nhwc{words}", {"x": x, "scale": scale, "residual": residual}, out)

    # --- memory -----------------------------------------------------------------------------------------------------

    def _place(self, inputs: list[Any], outputs: list[Any]) -> Lowered:
        threads = torch.get_num_threads()
        blocks = []
        for number, step in enumerate(self.steps):
            for value in (*step.reads.values(), step.out):
                if (block := value.buffer.block) is not None:
                    block.first, block.last = min(block.first, number), max(block.last, number)
                    blocks.append(block)
            kernel, problem = step.selection.kernel, step.selection.problem
            step.workspace = memory.Block(C.workspace(kernel.native, problem, threads), number, number)
            blocks.append(step.workspace)
        arena = memory.place(dict.fromkeys(blocks))
        return Lowered(self.steps, inputs, outputs, arena, threads)


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
    source, other = low.dense(x), low.dense(residual) if residual is not None else None
    filter = low.network.tensor(weight).detach()
    k, _, r, s = filter.shape
    (top, bottom), (left, right) = padding
    problem = (
        f"{source.head}_k{k}r{r}s{s}_u{stride[0]}x{stride[1]}_p{top}:{bottom}x{left}:{right}"
        f"_d{dilation[0]}x{dilation[1]}_g{groups}_{source.dtype}nhwc{_words(bias, residual, activation, alpha)}"
    )
    return _filtered(low, node, problem, {"x": source, "residual": other}, weight.target, filter, bias)


@_lowers(operators.conv_transpose2d)
def _conv_transpose2d(
    low, node, x, weight, bias=None, residual=None, *,
    stride=(1, 1), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1), groups=1, activation="none", alpha=0.0,
):  # fmt: skip
    """The input gradient of the convolution that goes the other way."""
    source, other = low.dense(x), low.dense(residual) if residual is not None else None
    filter = low.network.tensor(weight).detach()
    n, c, h, w = low.shapes[node].shape
    k, _, r, s = filter.shape
    behind = [p - o for p, o in zip(padding, output_padding, strict=True)]
    problem = (
        f"n{n}c{c}h{h}w{w}_k{k}r{r}s{s}_u{stride[0]}x{stride[1]}"
        f"_p{padding[0]}:{behind[0]}x{padding[1]}:{behind[1]}_d{dilation[0]}x{dilation[1]}_g{groups}"
        f"_{source.dtype}nhwc_dgrad{_words(bias, residual, activation, alpha)}"
    )
    return _filtered(low, node, problem, {"y": source, "residual": other}, weight.target, filter, bias)


@_lowers(operators.linear)
def _linear(low, node, x, weight, bias=None, residual=None, *, activation="none", alpha=0.0):
    """A 1x1 convolution of one pixel for each row. Behind a flattening its columns are put in the order of the map."""
    filter, name = low.network.tensor(weight).detach(), weight.target
    source = low.values[x]
    if x in low.by_pixels:
        map = low.shapes[x.args[0]].shape
        filter = filter.view(-1, *map[1:]).permute(0, 2, 3, 1).reshape(filter.shape)
        name += ".channels_last"
    other = low.values[residual] if residual is not None else None
    words = _words(bias, residual, activation, alpha)
    problem = f"n{source.n}c{source.c}h1w1_k{filter.shape[0]}r1s1_{source.dtype}nhwc{words}"
    return _filtered(low, node, problem, {"x": source, "residual": other}, name, filter[..., None, None], bias)


def _filtered(low, node, problem, reads, name, filter, bias) -> Value:
    out = low.target(node)
    constants = {} if bias is None else {"bias": low.network.tensor(bias).detach()}
    low.emit(problem, reads, out, weight=(name, filter), constants=constants)
    return out


@_lowers(operators.affine)
def _affine(low, node, x, scale, shift, residual=None, *, activation="none", alpha=0.0):
    source, other, out = low.values[x], low.dense(residual) if residual is not None else None, low.target(node)
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
    source, out = low.dense(x), low.target(node)
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


def _sized(low, node, x, op, size, words="") -> Value:
    source, out = low.dense(x), low.target(node)
    low.emit(f"{op}_{source.head}_o{size[0]}x{size[1]}_{source.dtype}nhwc{words}", {"x": source}, out)
    return out


@_lowers(operators.local_response_norm)
def _local_response_norm(low, node, x, *, size, alpha, beta, k):
    source, out = low.dense(x), low.target(node)
    low.emit(f"lrn2d_{source.head}_size{size}_{source.dtype}nhwc", {"x": source}, out, response=(alpha, beta, k))
    return out


@_lowers(operators.cat)
def _cat(low, node, xs):
    """What was not written in its place is copied there."""
    whole, offset = low.slices.get(node, (node, 0))
    buffer = low.concat(whole)
    for x in xs:
        here = replace(_value_of(low.shapes[x].shape, buffer.dtype, buffer.buffer), offset=offset, width=buffer.c)
        if low.values[x] != here:
            low.map2d(low.values[x], here)
        offset += here.c
    if whole is node:
        return buffer
    first = low.slices[node][1]
    return replace(_value_of(low.shapes[node].shape, buffer.dtype, buffer.buffer), offset=first, width=buffer.c)


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


def _slices(
    nodes: Sequence[fx.Node], shapes: dict[fx.Node, Any], outputs: set[fx.Node]
) -> dict[fx.Node, tuple[fx.Node, int]]:
    """Nodes whose results are channels of a concatenation: which one, and from where on. The last come first, so that a
    concatenation that begins a later one is found to be a slice of it."""
    slices: dict[fx.Node, tuple[fx.Node, int]] = {}
    here = set(nodes)
    for node in reversed(nodes):
        if node.target is not operators.cat:
            continue
        parts, widths = node.args[0], [shapes[x].shape[1] for x in node.args[0]]
        places = [slices.get(x) for x in parts]
        if node not in outputs and all(places) and len({whole for whole, _ in places}) == 1 and len(set(parts)) == len(parts):
            starts = [offset for _, offset in places]
            if all(a + width == b for a, width, b in zip(starts, widths, starts[1:], strict=False)):
                slices[node] = (places[0][0], starts[0])
                continue
        offset = 0
        for x, width in zip(parts, widths, strict=True):
            once = sum(part is x for part in parts) == 1
            if once and x in here and x not in slices and x not in outputs and _writes_slices(x):
                slices[x] = (node, offset)
            offset += width
    return slices


def _writes_slices(node: fx.Node) -> bool:
    """Whether the node's kernel writes channels of a wider buffer, and all who read it find it there."""
    readers = all(user.target in (operators.cat, operators.affine, operators.map2d) for user in node.users)
    return readers and node.target in (
        operators.conv2d, operators.conv_transpose2d, operators.map2d, operators.affine, operators.max_pool2d,
        operators.avg_pool2d,
    )  # fmt: skip


def _shapes(network, nodes, inputs, examples) -> dict[fx.Node, Any]:
    """Each node's result for inputs like the examples, as a tensor without data."""
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        values = {node: mode.from_tensor(t) for node, t in zip(inputs, examples, strict=True)}

        def value(node: fx.Node) -> Any:
            if node not in values and node.op == "get_attr":
                values[node] = mode.from_tensor(network.tensors[node.target])
            return values[node]

        for node in nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), value)
            values[node] = node.target(*args, **kwargs)
    return values


def _value_of(shape: Sequence[int], dtype: str, buffer: Buffer) -> Value:
    if len(shape) == 4:
        n, c, h, w = shape
    else:  # rows of features
        n, c, h, w = prod(shape[:-1]), shape[-1], 1, 1
    return Value(buffer, n, c, h, w, dtype)


def _is_channels_last(tensor: Tensor) -> bool:
    """As torch decides for a dense tensor that could be both: by its strides."""
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _bytes(dtype: str) -> int:
    return {name: torch_dtype.itemsize for torch_dtype, name in _DTYPES.items()}[dtype]


def _as_dict(step: Step) -> dict[str, Any]:
    def place(value: Value) -> tuple[str, int]:
        buffer = value.buffer
        return buffer.where, buffer.block.at if buffer.block is not None else buffer.number

    places = {name: place(value) for name, value in step.reads.items()} | {"out": place(step.out)}
    made = {
        "kernel": step.selection.kernel.native,
        "problem": step.selection.problem,
        "places": places,
        "constants": step.constants,
        "eps": step.eps,
        "workspace": step.workspace.at,
    }
    return made | ({"response": step.response} if step.response else {})
