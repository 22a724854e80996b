"""The pooling operators against torch's own: PyTorch's generators of inputs and of errors, derivatives, tracing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db

from fastconv import functional as F
from fastconv.profiling.trace import trace

NAMES = (
    "max_pool1d",
    "max_pool2d",
    "avg_pool1d",
    "avg_pool2d",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "max_unpool2d",
)
OPS = {
    name: next(o for o in op_db if o.name == f"nn.functional.{name}" and o.variant_test_name == "") for name in NAMES
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


def assert_same(ours, theirs, dtype):
    """Equal dtypes, shapes, strides; values equal for maxima and indices, close for averages."""
    for a, b in zip(outputs(ours), outputs(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.stride() == b.stride(), f"strides {a.stride()} differ from torch's {b.stride()}"
        torch.testing.assert_close(a, b, equal_nan=True)


def assert_gradient_strides(name, ours, theirs, y):
    """torch's strides, but for one case: the gradient of a global average keeps a channels_last input's layout, where
    torch returns a contiguous one that the convolution below would have to convert.
    """
    if "adaptive_avg" in name and y.shape[2:].numel() == 1:
        return
    if name == "unpool" and theirs.numel() == 0:  # torch gives an empty gradient here strides of zero
        return
    assert ours.stride() == theirs.stride(), f"gradient strides {ours.stride()} differ from torch's {theirs.stride()}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_sample_of_pytorch(name, dtype):
    """Values, dtypes, strides and gradients, on the samples as they are and made noncontiguous."""
    count = 0
    for base in OPS[name].sample_inputs("cpu", dtype, requires_grad=True):
        for sample in (base, base.noncontiguous()):
            count += 1
            with trace() as calls:
                ours = getattr(F, name)(sample.input, *sample.args, **sample.kwargs)
            theirs = OPS[name].op(sample.input, *sample.args, **sample.kwargs)
            described = f"{tuple(sample.input.shape)} {sample.input.stride()} {sample.args} {sample.kwargs}"
            try:
                assert_same(ours, theirs, dtype)
                assert not any(call.kernel.endswith("_aten") for call in calls), [call.kernel for call in calls]
                floats = [(a, b) for a, b in zip(outputs(ours), outputs(theirs), strict=True) if b.is_floating_point()]
                for a, b in floats:
                    g = torch.randn_like(b)
                    da, db = (torch.autograd.grad(t, sample.input, g)[0] for t in (a, b))
                    assert_gradient_strides(name, da, db, b)
                    if dtype is torch.bfloat16:  # torch rounds after every addition, we once: float32 is the judge
                        wide = sample.input.detach().float().requires_grad_()
                        result = outputs(OPS[name].op(wide, *sample.args, **sample.kwargs))[0]
                        db = torch.autograd.grad(result, wide, g.float())[0].bfloat16()
                    torch.testing.assert_close(da, db)
                with torch.no_grad():
                    assert_same(
                        getattr(F, name)(sample.input, *sample.args, **sample.kwargs),
                        OPS[name].op(sample.input, *sample.args, **sample.kwargs),
                        dtype,
                    )
            except AssertionError as error:
                raise AssertionError(f"{name} on {described}: {error}") from None
    assert count


@pytest.mark.parametrize("name", [n for n in NAMES if OPS[n].error_inputs_func is not None])
def test_every_error_of_pytorch(name):
    """The class torch raises."""
    for case in OPS[name].error_inputs(torch.device("cpu")):
        sample = case.sample_input
        with pytest.raises(case.error_type):
            getattr(F, name)(sample.input, *sample.args, **sample.kwargs)


ERRORS = {
    "kernel 0": lambda m, x: m.max_pool2d(x, 0),
    "stride 0": lambda m, x: m.max_pool2d(x, 2, 0),
    "negative stride": lambda m, x: m.avg_pool2d(x, 2, (1, -1)),
    "negative padding": lambda m, x: m.max_pool2d(x, 2, 1, -1),
    "padding over half": lambda m, x: m.avg_pool2d(x, 3, 1, 2),
    "dilation 0": lambda m, x: m.max_pool2d(x, 2, 1, 0, 0),
    "window too large": lambda m, x: m.max_pool2d(x, 50),
    "three numbers": lambda m, x: m.max_pool2d(x, (2, 2, 2)),
    "padding 2^62": lambda m, x: m.max_pool2d(x, 2, 1, 2**62),
    "dilation 2^62": lambda m, x: m.max_pool2d(x, 3, 1, 0, 2**62),
    "divisor 0": lambda m, x: m.avg_pool2d(x, 2, divisor_override=0),
    "two dimensions": lambda m, x: m.avg_pool2d(x[0, 0], 2),
    "two dimensions, max": lambda m, x: m.max_pool2d(x[0, 0], 2),
    "two dimensions, adaptive": lambda m, x: m.adaptive_avg_pool2d(x[0, 0], (2, 2)),
    "two dimensions, one number": lambda m, x: m.adaptive_max_pool2d(x[0, 0], 2),
    "three sizes": lambda m, x: m.adaptive_max_pool2d(x, (2, 2, 2)),
    "five dimensions": lambda m, x: m.avg_pool2d(x[None], 2),
    "no channels": lambda m, x: m.max_pool2d(x[:, :0], 2),
    "no rows": lambda m, x: m.adaptive_avg_pool2d(x[:, :, :0], 2),
    "negative output": lambda m, x: m.adaptive_max_pool2d(x, (-1, 2)),
    "index beyond the output": lambda m, x: m.max_unpool2d(x, torch.full(x.shape, 10**6), 2),
    "index just beyond the output": lambda m, x: m.max_unpool2d(x, torch.full(x.shape, 14 * 18), 2),
    "negative index": lambda m, x: m.max_unpool2d(x, torch.full(x.shape, -1), 2),
    "indices of another shape": lambda m, x: m.max_unpool2d(x, torch.zeros(1, 2, 3, 3, dtype=torch.int64), 2),
    "int32 indices": lambda m, x: m.max_unpool2d(x, torch.zeros(x.shape, dtype=torch.int32), 2),
    "no tensor": lambda m, x: m.max_pool2d(None, 2),
    "no tensor, avg": lambda m, x: m.avg_pool2d([1.0], 2),
    "no indices": lambda m, x: m.max_unpool2d(x, None, 2),
    "kernel None": lambda m, x: m.max_pool2d(x, None),
    "kernel float": lambda m, x: m.max_pool2d(x, 2.0),
    "kernel 2^63 - 1": lambda m, x: m.avg_pool2d(x, 2**63 - 1),
    "kernel 2^64": lambda m, x: m.max_pool2d(x, 2**64),
    "padding 2^31": lambda m, x: m.avg_pool2d(x, 2**32, 1, 2**31),
    "padding 2^63 - 1": lambda m, x: m.max_pool2d(x, 2, 1, 2**63 - 1),
    "stride 2^63 - 1, ceil": lambda m, x: m.max_pool2d(x, 2, 2**63 - 1, ceil_mode=True),
    "divisor 2^64": lambda m, x: m.avg_pool2d(x, 2, divisor_override=2**64),
    "divisor float": lambda m, x: m.avg_pool2d(x, 2, divisor_override=2.5),
    "adaptive text": lambda m, x: m.adaptive_max_pool2d(x, "a"),
    "adaptive float": lambda m, x: m.adaptive_avg_pool2d(x, 2.0),
    "adaptive overflow": lambda m, x: m.adaptive_avg_pool2d(x, 2**40),
    "adaptive 2^63 - 1": lambda m, x: m.adaptive_max_pool2d(x, 2**63 - 1),
    "unpooled overflow": lambda m, x: m.max_unpool2d(x, torch.zeros(x.shape, dtype=torch.int64), 2, 2**40),
    "impossible output": lambda m, x: m.max_unpool2d(x, torch.zeros(x.shape, dtype=torch.int64), 2, output_size=(3, 3)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_class_equals_torch(what):
    """Bad arguments raise what torch raises, and say something."""
    x = torch.randn(2, 3, 7, 9)
    call = ERRORS[what]
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        call(torch.nn.functional, x)
    with pytest.raises(type(theirs.value)) as ours:
        call(F, x)
    assert str(ours.value)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["avg_pool2d", "max_pool2d"])
def test_windows_fit_where_torchs_do(name, device):
    """Every small size, window, stride, padding and rounding: torch's shape, or a RuntimeError where torch has one."""
    for size, window, stride, padding, ceil in product((1, 2, 3, 4), (2, 3, 5, 7), (1, 2, 3, 4), (0, 1), (False, True)):
        x = torch.ones(1, 1, size, 4, device=device)
        shapes = []
        for module in (torch.nn.functional, F):
            try:
                y = getattr(module, name)(x, (window, 2), (stride, 1), (padding, 0), ceil_mode=ceil)
                shapes.append(tuple(y.shape))
            except RuntimeError as error:
                assert "Output size is too small" in str(error)
                shapes.append(None)
        assert shapes[0] == shapes[1], (size, window, stride, padding, ceil)


@pytest.mark.parametrize("size", [0, (0, 2), (3, 0)], ids=str)
@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_adaptive_pools_to_nothing(name, size):
    """torch's shape and strides, and zero gradients (for which torch has an error)."""
    x = torch.randn(2, 3, 7, 9, requires_grad=True)
    theirs, ours = (getattr(module, name)(x, size) for module in (torch.nn.functional, F))
    assert_same(ours, theirs, x.dtype)
    assert torch.autograd.grad(ours.sum(), x)[0].eq(0).all()


@pytest.mark.parametrize("name", ["adaptive_avg_pool2d", "adaptive_max_pool2d"])
def test_adaptive_pools_refuse_what_is_no_tensor(name):
    """torch's own Python fails on these with an AttributeError."""
    for wrong in (None, [1.0], "x"):
        with pytest.raises(TypeError, match="input must be a Tensor"):
            getattr(F, name)(wrong, 2)


POOLS = {
    "max": (lambda m, x: m.max_pool2d(x, 3, 2, 1)),
    "max ceil": (lambda m, x: m.max_pool2d(x, (3, 2), (2, 3), (1, 0), ceil_mode=True)),
    "max dilation": (lambda m, x: m.max_pool2d(x, (2, 3), 1, 1, (2, 1))),
    "max indices": (lambda m, x: m.max_pool2d(x, 3, 2, 1, return_indices=True)),
    "avg": (lambda m, x: m.avg_pool2d(x, 3, 2, 1)),
    "avg nopad": (lambda m, x: m.avg_pool2d(x, (3, 2), 2, 1, True, False)),
    "avg override": (lambda m, x: m.avg_pool2d(x, 2, divisor_override=-3)),
    "adaptive avg": (lambda m, x: m.adaptive_avg_pool2d(x, (3, None))),
    "adaptive avg 1": (lambda m, x: m.adaptive_avg_pool2d(x, 1)),
    "adaptive max": (lambda m, x: m.adaptive_max_pool2d(x, (3, 2))),
    "adaptive max indices": (lambda m, x: m.adaptive_max_pool2d(x, (None, 2), return_indices=True)),
    "unpool": (lambda m, x: m.max_unpool2d(x, plane_positions(x), 2)),
}


def plane_positions(x):
    """Distinct indices for every plane of x, spread over a plane four times as large."""
    h, w = x.shape[-2:]
    return (torch.arange(h * w) * 3).view(h, w).expand(x.shape).contiguous()


def distinct(*shape) -> torch.Tensor:
    """Values far enough apart that no maximum changes under a finite difference."""
    count = torch.Size(shape).numel()
    return torch.randperm(count).to(torch.float64).view(shape).div(count).requires_grad_()


@pytest.mark.parametrize("what", POOLS)
def test_derivatives(what):
    """First and second derivatives of our own kernels."""
    x = distinct(2, 2, 6, 5)
    with trace() as calls:
        assert torch.autograd.gradcheck(lambda t: outputs(POOLS[what](F, t))[0], (x,))
        assert torch.autograd.gradgradcheck(lambda t: outputs(POOLS[what](F, t))[0], (x,))
    assert calls
    assert not any(call.kernel.endswith("_aten") for call in calls)


@pytest.mark.parametrize(
    "shape", [(2, 3, 6, 5), (0, 3, 6, 5), (3, 6, 5), (1, 1, 6, 5), (2, 1, 6, 5), (1, 4, 5, 1)], ids=str
)
@pytest.mark.parametrize("what", POOLS)
def test_shapes_and_layouts(what, shape):
    """Empty batches, unbatched inputs and ambiguous layouts: torch's values, strides and gradients."""
    for rearranged in (
        lambda t: t,
        lambda t: t.movedim(-3, -1).contiguous().movedim(-1, -3),
        lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda t: t.expand(2, *t.shape[1:]) if t.dim() == 4 and t.shape[0] == 1 else t,
    ):
        x = rearranged(torch.randn(shape)).detach().requires_grad_()
        try:
            theirs = POOLS[what](torch.nn.functional, x)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                POOLS[what](F, x)
            continue
        ours = POOLS[what](F, x)
        assert_same(ours, theirs, x.dtype)
        g = torch.randn_like(outputs(theirs)[0])
        da, db = (torch.autograd.grad(outputs(t)[0], x, g)[0] for t in (ours, theirs))
        torch.testing.assert_close(da, db)
        assert_gradient_strides("adaptive_avg" if "adaptive avg" in what else what, da, db, outputs(theirs)[0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("what", POOLS)
def test_other_dtypes_are_torchs(what, dtype):
    """What our kernels do not know gives torch's result or torch's error, with gradients on and off."""
    x = torch.randint(0, 9, (1, 2, 6, 5)).to(dtype)
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            try:
                theirs = POOLS[what](torch.nn.functional, x)
            except Exception as error:
                with pytest.raises(type(error)):
                    POOLS[what](F, x)
                continue
            for a, b in zip(outputs(POOLS[what](F, x)), outputs(theirs), strict=True):
                assert torch.equal(a, b)


def test_nans_ties_and_infinities():
    """torch's values and positions, both layouts, more columns than a register holds."""
    torch.manual_seed(0)
    x = torch.randint(-1, 2, (2, 5, 13, 70)).float()
    x[torch.rand(x.shape) < 0.1] = torch.nan
    x[torch.rand(x.shape) < 0.5] = -torch.inf
    for format in (torch.contiguous_format, torch.channels_last):
        t = x.contiguous(memory_format=format)
        for arguments in ((3, 2, 1), (2, 2, 0), ((3, 2), 1, 1), (3, (1, 3), 1, (2, 1), True)):
            ours = F.max_pool2d(t, *arguments, return_indices=True)
            theirs = torch.nn.functional.max_pool2d(t, *arguments, return_indices=True)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(ours[0].signbit(), theirs[0].signbit())
            torch.testing.assert_close(F.max_pool2d(t, *arguments), theirs[0], rtol=0, atol=0, equal_nan=True)


def test_a_dilated_window_that_misses_the_input():
    """Maximum -inf, an index inside the plane, no gradient."""
    x = torch.randn(1, 2, 1, 6, requires_grad=True)
    y, index = F.max_pool2d(x, (2, 2), 1, (1, 0), (2, 1), return_indices=True)
    assert torch.isneginf(y).all()
    assert ((index >= 0) & (index < 6)).all()
    assert torch.autograd.grad(F.max_pool2d(x, (2, 2), 1, (1, 0), (2, 1)).clamp(min=0).sum(), x)[0].eq(0).all()


def test_inside_autograd_an_index_is_one_byte():
    """int64 positions only for callers who ask, or where a byte cannot number the taps."""
    x = torch.randn(1, 2, 40, 41, requires_grad=True)
    for arguments, expected in (((3, 2, 1), "u8"), (((15, 17), 1), "u8"), (((16, 16), 1), "i64")):
        with trace() as calls:
            F.max_pool2d(x, *arguments).sum().backward()
        assert [call.problem.index for call in calls] == [expected, expected]
    with trace() as calls:
        F.max_pool2d(x.detach(), 3)
    assert calls[0].problem.index == "none"


OPCHECKS = {
    "max": (torch.ops.fastconv.max_pool2d, ([3, 3], [2, 2], [1, 1], [1, 1], False)),
    "max_indexed": (torch.ops.fastconv.max_pool2d_indexed, ([3, 3], [2, 2], [1, 1], [1, 1], True, False)),
    "avg": (torch.ops.fastconv.avg_pool2d, ([3, 3], [2, 2], [1, 1], True, False, None)),
    "adaptive_avg": (torch.ops.fastconv.adaptive_avg_pool2d, ([3, 2],)),
    "adaptive_max": (torch.ops.fastconv.adaptive_max_pool2d, ([3, 2],)),
    "adaptive_max_indexed": (torch.ops.fastconv.adaptive_max_pool2d_indexed, ([3, 2],)),
    "avg_dgrad": (torch.ops.fastconv.avg_pool2d_dgrad, ([12, 10], [2, 2], [2, 2], [0, 0], False, True, 3, True)),
    "adaptive_avg_dgrad": (torch.ops.fastconv.adaptive_avg_pool2d_dgrad, ([12, 10], False)),
}


@pytest.mark.parametrize("what", OPCHECKS)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(what, format):
    """Schema, fake kernel, autograd registration and AOT dispatch agree with the operator."""
    op, arguments = OPCHECKS[what]
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=format).requires_grad_()
    torch.library.opcheck(op.default, (x, *arguments))


def test_opcheck_with_an_index():
    """The gradients of max pools and unpooling."""
    x = torch.randn(2, 3, 6, 5)
    y, index = torch.ops.fastconv.max_pool2d_indexed(x, [2, 2], [2, 2], [0, 0], [1, 1], False, False)
    dy = torch.randn_like(y).requires_grad_()
    fastconv = torch.ops.fastconv
    torch.library.opcheck(
        fastconv.max_pool2d_dgrad.default, (dy, index, [6, 5], [2, 2], [2, 2], [0, 0], [1, 1], False, True)
    )
    y, index = fastconv.adaptive_max_pool2d_indexed(x, [3, 2])
    dy = torch.randn_like(y).requires_grad_()
    torch.library.opcheck(fastconv.adaptive_max_pool2d_dgrad.default, (dy, index, [6, 5], False))
    torch.library.opcheck(fastconv.max_unpool2d.default, (dy, index, [6, 5]))
    big = torch.randn(2, 3, 6, 5, requires_grad=True)
    torch.library.opcheck(fastconv.max_unpool2d_dgrad.default, (big, index, False))


class Pools(torch.nn.Module):
    """Every pool in a row."""

    def forward(self, x):
        x = F.max_pool2d(x, 3, 2, 1)
        x = F.avg_pool2d(x, 2, 1, ceil_mode=True)
        y, index = F.max_pool2d(x, 2, 2, return_indices=True)
        x = F.max_unpool2d(y, index, 2, output_size=x.shape[2:])
        return F.adaptive_avg_pool2d(x, 2).sum() + F.adaptive_max_pool2d(x, (1, None)).sum()


def test_compile_with_a_dynamic_batch():
    """One graph, no breaks, forward and backward, for every batch size."""
    model = Pools()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 5, 3):
        x = torch.randn(n, 3, 17, 19, requires_grad=True)
        ours, theirs = compiled(x), model(x)
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))


def test_export():
    """torch.export keeps the operators, with a symbolic batch."""
    x = torch.randn(4, 3, 17, 19)
    program = torch.export.export(Pools(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=1)}})
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "fastconv.max_pool2d.default" in names
    other = torch.randn(3, 3, 17, 19)
    torch.testing.assert_close(program.module()(other), Pools()(other))
