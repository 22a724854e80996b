"""Local response normalisation against torch's own: PyTorch's samples, odd inputs, errors, derivatives, tracing."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db

from fastconv import config, functional
from fastconv.profiling.trace import trace
from tests.ops.test_norm_ops import FORMATS, LYING, assert_close

OPS = torch.ops.fastconv
INFO = next(o for o in op_db if o.name == "nn.functional.local_response_norm")
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 2e-3}
theirs, ours = torch.nn.functional.local_response_norm, functional.local_response_norm
OUTSIDE = ("no_image", "volume", "table", "table_transposed")  # of our kernels
NUMBERS = [(5, 1e-4, 0.75, 1.0), (3, 2.0, 0.5, 0.5), (4, 1.0, 0.75, 2), (2, 1.5, 1, 1.0), (9, 0.5, 1.3, 1.0)]


def run(function, x, *numbers):
    """y and dx."""
    x = x.detach().requires_grad_()
    y = function(x, *numbers)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
    return y, torch.autograd.grad(y, x, grad)[0]


def compare(x, *numbers):
    """Ours against torch's; 16-bit types against torch in float32, which rounds once."""
    with trace() as calls:
        mine = run(ours, x, *numbers)
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    for what, a, b in zip(("y", "dx"), mine, run(theirs, wide, *numbers), strict=True):
        assert_close(
            a, b.to(x.dtype), TOLERANCE[x.dtype], f"{what} of {tuple(x.shape)} {x.stride()}", stride=what == "y"
        )
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_sample_of_pytorch(dtype):
    count = 0
    for base in INFO.sample_inputs("cpu", dtype, requires_grad=False):
        for sample in (base, base.noncontiguous()):
            given = dict(zip(("size", "alpha", "beta", "k"), (*sample.args, 1e-4, 0.75, 1.0), strict=False))
            if sample.input.numel() == 0:
                assert torch.equal(ours(sample.input, *sample.args, **sample.kwargs), sample.input)
                continue
            calls = compare(sample.input, *(given | sample.kwargs).values())
            assert [call.kernel.split("_")[1] for call in calls] == ["window", "window"]
            count += 1
    assert count > 18


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lying", LYING)
def test_every_way_to_lie(lying, dtype, numbers):
    """Values as torch's, strides of the result too; tables, volumes and empty batches are torch's own."""
    x = LYING[lying](lambda *shape: 3 * torch.randn(*shape)).to(dtype)
    if lying.startswith("table"):
        with pytest.raises(ValueError, match="3D or higher"):
            ours(x, *numbers)
    elif lying == "no_image":
        assert ours(x, *numbers) is x
    elif lying != "volume" or dtype in (torch.float32, torch.float64):
        assert bool(compare(x, *numbers)) == (lying != "volume")


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_nan_infinity_and_overflow(bad, layout):
    """What a window makes of them is what torch makes of them; the other channels are untouched."""
    x = torch.randn(2, 9, 4, 7).contiguous(memory_format=layout)
    x[1, 4, 2, 3] = bad
    for numbers in NUMBERS:
        for what, a, e in zip(("y", "dx"), run(ours, x, *numbers), run(theirs, x, *numbers), strict=True):
            if what == "dx" and numbers[2] > 1:
                continue  # torch multiplies an infinite derivative of the power by zero; the gradient has a limit
            assert torch.equal(a.isnan(), e.isnan()), f"{what} with {numbers}"
            torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_a_base_of_zero_and_below():
    """k = 0 with zeros in the windows divides by zero, a negative base has no root: torch's NaN and infinities."""
    x = torch.randn(2, 6, 3, 5)
    x[:, 1:4] = 0
    for numbers in (
        (3, 1.0, 0.75, 0.0),
        (3, 1.0, 0.5, 0.0),
        (3, 1.0, 1.25, 0.0),
        (3, 1.0, 0.75, -0.5),
        (3, 0.0, 0.75, 0),
    ):
        torch.testing.assert_close(ours(x, *numbers), theirs(x, *numbers), equal_nan=True)


ERRORS = {
    "one dimension": lambda f: f(torch.randn(3), 2),
    "two dimensions": lambda f: f(torch.randn(2, 3), 2),
    "two dimensions of nothing": lambda f: f(torch.randn(2, 0), 2),
    "no tensor": lambda f: f([1.0], 2),
    "no window": lambda f: f(torch.randn(2, 3, 4, 5), 0),
    "no window of a sequence": lambda f: f(torch.randn(2, 3, 4), 0),
    "a negative window": lambda f: f(torch.randn(2, 3, 4, 5), -1),
    "a window of 2.0": lambda f: f(torch.randn(2, 3, 4, 5), 2.0),
    "a window True": lambda f: f(torch.randn(2, 3, 4, 5), True),
    "a window of text": lambda f: f(torch.randn(2, 3, 4, 5), "a"),
    "no size": lambda f: f(torch.randn(2, 3, 4, 5)),
    "alpha text": lambda f: f(torch.randn(2, 3, 4, 5), 3, alpha="a"),
    "alpha beyond floats": lambda f: f(torch.randn(2, 3, 4, 5), 3, alpha=10**30),
    "alpha of wrong shape": lambda f: f(torch.randn(2, 3, 4, 5), 3, alpha=torch.ones(2)),
    "beta None": lambda f: f(torch.randn(2, 3, 4, 5), 3, beta=None),
    "booleans": lambda f: f(torch.ones(2, 3, 4, dtype=torch.bool), 3),
    "complex numbers": lambda f: f(torch.ones(2, 3, 4, dtype=torch.complex64), 3),
    "unknown argument": lambda f: f(torch.randn(2, 3, 4), 3, gamma=1.0),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_class_equals_torch(what):
    with pytest.raises(Exception) as expected:  # noqa: PT011
        ERRORS[what](theirs)
    with pytest.raises(type(expected.value)) as mine:
        ERRORS[what](ours)
    assert str(mine.value)


def test_what_torch_takes_and_we_do_not():
    """Tensors as numbers, integers as inputs: torch's own function."""
    x = torch.randn(2, 6, 3, 5)
    with trace() as calls:
        for arguments in ((3, torch.tensor(0.5)), (3, 1e-4, torch.tensor(0.75)), (torch.tensor(3),), (3, 1j)):
            torch.testing.assert_close(ours(x, *arguments), theirs(x, *arguments))
        integers = torch.arange(24).view(2, 3, 4)
        assert torch.equal(ours(integers, 3), theirs(integers, 3))
        assert torch.equal(ours(torch.randn(2, 0, 4), 3), torch.empty(2, 0, 4))
    assert not calls


@pytest.mark.parametrize("shape", [(2, 6, 7), (2, 7, 3, 4)], ids=str)
@pytest.mark.parametrize("numbers", [(3, 0.5, 0.75, 1.0), (4, 2.0, 0.5, 1.5), (5, 1.0, 1.2, 1.0)], ids=str)
@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_first_and_second_order_derivatives(layout, numbers, shape):
    """By finite differences, on our kernels (first order) and through them (second); forward mode is torch's."""
    x = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:
        x = x.contiguous(memory_format=layout)
    x.requires_grad_()

    def function(x):
        return ours(x, *numbers)

    with trace() as calls:
        assert gradcheck(function, (x,))
    assert {call.kernel.split("/")[1].split("_")[0] for call in calls} == {"fprop", "dgrad"}
    assert not any("aten" in call.kernel for call in calls)
    assert gradgradcheck(function, (x,))
    assert gradcheck(function, (x,), check_forward_ad=True)


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_second_order_equals_torchs(numbers):
    """The composite that second order runs through is the gradient our kernel computes, and torch's."""
    x, dy = (torch.randn(2, 7, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = []
    for function in (ours, theirs):
        (dx,) = torch.autograd.grad(function(x, *numbers), x, dy, create_graph=True)
        results.append([dx, *torch.autograd.grad(dx.cos().sum(), (x, dy))])
    torch.testing.assert_close(*results)
    torch.testing.assert_close(results[0][0], OPS.local_response_norm_dgrad(dy.detach(), x.detach(), *numbers))


def test_second_order_in_sixteen_bits():
    x = torch.randn(2, 6, 3, 4).bfloat16().requires_grad_()
    (dx,) = torch.autograd.grad(ours(x, 3, 0.5).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(dx.sum(), x)
    exact = x.detach().float().requires_grad_()
    (dx,) = torch.autograd.grad(theirs(exact, 3, 0.5).sum(), exact, create_graph=True)
    assert second.dtype == torch.bfloat16
    torch.testing.assert_close(second.float(), torch.autograd.grad(dx.sum(), exact)[0], atol=3e-2, rtol=2e-2)


def test_only_the_input_is_kept():
    """Backward reads x alone, and notices when it was changed."""
    x = torch.randn(2, 6, 3, 5, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours(x, 3)
    assert len(kept) == 1 and kept[0].data_ptr() == x.data_ptr()
    y = ours(x, 3)
    with torch.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_opcheck(dtype, layout):
    x, dy = (torch.randn(2, 4, 3, 5).to(dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    for numbers in NUMBERS:
        torch.library.opcheck(OPS.local_response_norm.default, (x, *numbers))
        torch.library.opcheck(OPS.local_response_norm_dgrad.default, (dy, x, *numbers))


@pytest.mark.parametrize("lying", [name for name in LYING if name not in OUTSIDE])
def test_traced_strides(lying):
    """The fake kernel promises the strides the operator gives."""
    x = LYING[lying](torch.randn)
    torch.library.opcheck(OPS.local_response_norm.default, (x, 3, 1e-4, 0.75, 1.0), test_utils="test_faketensor")


def test_compiles_whole_with_a_dynamic_batch():
    """No graph break forward or backward, and one graph for every batch size."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: ours(x, 5, 0.5), backend=counter, fullgraph=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 6, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        y, expected = compiled(x), theirs(x, 5, 0.5)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        grad = torch.randn_like(y)
        torch.testing.assert_close(*(torch.autograd.grad(out, x, grad)[0] for out in (y, expected)))
    assert counter.frame_count == 1


def test_export_trace_and_meta():
    class Layer(torch.nn.Module):
        def forward(self, x):
            return ours(x, 3, 0.5)

    layer, x = Layer(), torch.randn(2, 4, 3, 5)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}})
    torch.testing.assert_close(program.module()(x), layer(x))
    graph = torch.fx.symbolic_trace(layer)
    assert ours in [node.target for node in graph.graph.nodes]
    torch.testing.assert_close(graph(x), layer(x))
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert "fastconv::local_response_norm" in str(traced.graph)
    assert layer(x.to("meta")).is_meta


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 5, 7), (2, 6, 2, 3, 4)], ids=str)
def test_autocast_gives_torchs_dtypes(shape, cast):
    """Maps in float32, as torch averages them; sequences in their own type."""
    for dtype in TOLERANCE:
        x = torch.randn(shape).to(dtype).requires_grad_()
        with torch.autocast("cpu", cast):
            mine, expected = ours(x, 3, 1.0), theirs(x, 3, 1.0)
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype] * 4)
        (dx,) = torch.autograd.grad(mine.sum(), x)
        assert dx.dtype == dtype


def test_vmap():
    x = torch.randn(3, 2, 4, 3, 5)
    mine, expected = (torch.vmap(lambda t, f=f: f(t, 3, 0.5))(x) for f in (ours, theirs))
    torch.testing.assert_close(mine, expected)


def test_torchs_rows_agree():
    """The same operators on torch's rows of the list."""
    for dtype, layout in ((torch.float32, FORMATS[0]), (torch.float64, FORMATS[1])):
        x = torch.randn(3, 6, 4, 5).to(dtype).contiguous(memory_format=layout)
        for numbers in NUMBERS:
            results = []
            for kernel in ("*window*", "*aten*"):
                with config(kernel=kernel), trace() as calls:
                    results.append(run(ours, x, *numbers))
                assert len(calls) == 2 and all(kernel.strip("*") in call.kernel for call in calls)
            for a, b in zip(*results, strict=True):
                assert_close(a, b, TOLERANCE[dtype], "result")


def test_a_subclass_sees_the_call():
    class Seen(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return func if func in (ours,) else super().__torch_function__(func, types, args, kwargs or {})

    assert ours(torch.randn(2, 3, 4).as_subclass(Seen), 3) is ours
