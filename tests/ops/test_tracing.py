"""torch.compile, torch.export, opcheck and FLOP counting see whole operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from fastconv import functional
from tests.ops.cases import CASES, Case

BY_CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
OPS = torch.ops.fastconv
GEOMETRY = ([2, 1], [1, 0, 2, 1], [1, 2])


def operands(dtype=torch.float32, layout=torch.contiguous_format):
    """x, weight, bias, dy and residual of a grouped, strided, asymmetrically padded convolution."""
    torch.manual_seed(0)
    shapes = ((2, 4, 6, 7), (6, 2, 3, 2), (6,), (2, 6, 3, 8), (2, 6, 3, 8))
    return [
        (t.contiguous(memory_format=layout) if t.dim() == 4 else t).requires_grad_()
        for t in (torch.randn(shape).to(dtype) for shape in shapes)
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck(dtype, layout):
    x, w, bias, dy, residual = operands(dtype, layout)
    fused = (*GEOMETRY, 2, "relu", 0.0)
    torch.library.opcheck(OPS.conv2d.default, (x, w, bias, *GEOMETRY, 2))
    torch.library.opcheck(OPS.conv2d.default, (x, w, None, *GEOMETRY, 2, True))
    torch.library.opcheck(OPS.conv2d_act.default, (x, w, bias, residual, *fused))
    torch.library.opcheck(OPS.conv2d_dgrad.default, (dy, w, None, [6, 7], *GEOMETRY, 2))
    torch.library.opcheck(OPS.conv2d_dgrad.default, (dy, w, None, [6, 7], *GEOMETRY, 2, False))
    torch.library.opcheck(OPS.conv2d_wgrad.default, (dy, x, [3, 2], *GEOMETRY, 2, True))


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "unbatched"], ids=lambda case: case.name)
def test_compiles_whole_with_a_dynamic_batch(case: Case):
    """No graph break forward or backward, and one graph for every batch size."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.ours, backend=counter, fullgraph=True)
    _, weight, bias = case.tensors(torch.float32)
    for batch in (2, 3, 5):
        x = torch.randn(batch, *case.x[1:]).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        y, expected = compiled(x, weight, bias), case.theirs(x, weight, bias)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        grad = torch.randn_like(y)
        ours, theirs = (torch.autograd.grad(out, (x, weight, bias), grad) for out in (y, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_compiles_the_fused_operator(layout):
    x, w, bias, _, _ = operands(layout=layout)

    def function(x, w, bias):
        return functional.conv2d_act(x, w, bias, (2, 1), (1, 0, 2, 1), (1, 2), 2, "relu6")

    y = torch.compile(function, backend="aot_eager", fullgraph=True)(x, w, bias)
    expected = function(x, w, bias)
    assert torch.equal(y, expected) and y.stride() == expected.stride()
    for ours, theirs in zip(*(torch.autograd.grad(t.sum(), (x, w, bias)) for t in (y, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


class Layer(nn.Module):
    """One convolution of a case, as a module."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        _, weight, bias = case.tensors(torch.float32, requires_grad=False)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x):
        return self.case.ours(x, self.weight, self.bias)


@BY_CASE
def test_exports(case: Case):
    layer, x = Layer(case), case.tensors(torch.float32, requires_grad=False)[0]
    batch = {}
    if case.name != "unbatched":
        x, batch = torch.cat([x, x]), {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": batch})
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(target.startswith("fastconv.") for target in targets) == 1
    torch.testing.assert_close(program.module()(x), layer(x))


@BY_CASE
def test_traces_symbolically_and_by_example(case: Case):
    layer, x = Layer(case), case.tensors(torch.float32, requires_grad=False)[0]
    graph = torch.fx.symbolic_trace(layer)
    assert getattr(functional, case.function) in [node.target for node in graph.graph.nodes]
    torch.testing.assert_close(graph(x), layer(x))
    if "transpose" in case.function:
        with pytest.raises(NotImplementedError, match=r"torch\.export"):
            torch.jit.trace(layer, x)
        return
    traced = torch.jit.trace(layer, x)
    assert "fastconv::" in str(traced.graph)
    torch.testing.assert_close(traced(x), layer(x))


@BY_CASE
def test_flops_equal_torchs(case: Case):
    def count(function, backward):
        tensors = case.tensors(torch.float32)
        with FlopCounterMode(display=False) as counter:
            y = function(*tensors)
            if backward:
                y.sum().backward()
        return counter.get_total_flops()

    forward = count(case.ours, backward=False)
    assert forward == count(case.theirs, backward=False) > 0
    both = count(case.ours, backward=True)
    assert both == 3 * forward
    if case.options.get("groups", 1) == 1:  # torch counts the weight gradient of a grouped one as if it were dense
        assert both == count(case.theirs, backward=True)


def test_torch_function_sees_the_call():
    class Tagged(torch.Tensor):
        calls: list = []  # noqa: RUF012

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.calls.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    y = functional.conv2d(torch.randn(1, 2, 4, 5).as_subclass(Tagged), torch.randn(3, 2, 2, 2))
    assert isinstance(y, Tagged) and functional.conv2d in Tagged.calls
    with torch.device("meta"):
        assert functional.conv2d(torch.randn(1, 2, 4, 5), torch.randn(3, 2, 2, 2)).is_meta


@pytest.mark.parametrize("pool", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_torch_function_sees_the_pools(pool):
    """A subclass keeps its type, and a mode counts the operator: the short way is for plain tensors nobody watches."""

    class Tagged(torch.Tensor):
        pass

    class Seen(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    x = torch.randn(1, 2, 4, 6)
    call = getattr(functional, pool)
    y = call(x, 2)
    tagged = call(x.as_subclass(Tagged), 2)
    assert isinstance(tagged, Tagged) and torch.equal(tagged.as_subclass(torch.Tensor), y)
    with Seen() as seen:
        call(x, 2)
    assert seen.calls > 0
