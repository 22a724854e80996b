"""Batch normalisation against torch's own: PyTorch's generators of inputs, odd inputs, errors, derivatives, tracing."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch._dynamo.testing
from torch.autograd import gradcheck, gradgradcheck
from torch.testing._internal.common_methods_invocations import op_db

from fastconv import config, functional
from fastconv.profiling.trace import trace

OPS = torch.ops.fastconv
INFO = next(o for o in op_db if o.name == "nn.functional.batch_norm")
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# In bfloat16 torch keeps the batch's statistics in bfloat16; float32 is the judge there.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}
theirs = torch.nn.functional.batch_norm


def parameters(c, dtype=torch.float32):
    """running_mean, running_var, weight, bias."""
    return [
        torch.randn(c).to(dtype),
        torch.rand(c).add(0.5).to(dtype),
        torch.randn(c).to(dtype),
        torch.randn(c).to(dtype),
    ]


def assert_close(a, b, tolerance, what, stride=True):
    assert a.dtype == b.dtype and a.shape == b.shape, what
    if stride:
        assert a.stride() == b.stride(), f"{what}: strides {a.stride()} for torch's {b.stride()}"
    size = max(1.0, b[b.isfinite()].abs().max().item()) if b.isfinite().any() else 1.0
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * size, equal_nan=True, msg=lambda m: f"{what}: {m}")


def run(function, x, running, affine, training, momentum=0.1, eps=1e-5):
    """y, its gradients, and the running statistics afterwards."""
    running = [None if t is None else t.clone() for t in running]
    x, *affine = (None if t is None else t.detach().requires_grad_() for t in (x, *affine))
    y = function(x, *running, *affine, training, momentum, eps)
    leaves = [t for t in (x, *affine) if t is not None]
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, grad), *(t for t in running if t is not None)]


def compare(x, running, affine, training, tolerance, judge=None, **options):
    """Ours against torch's, by values, dtypes and strides; ``judge``: torch in a wider type decides the values."""
    with trace() as calls:
        ours = run(functional.batch_norm, x, running, affine, training, **options)
    expected = run(theirs, x, running, affine, training, **options)
    values = expected
    if judge:
        wide = [[None if t is None else t.to(judge) for t in part] for part in ((x,), running, affine)]
        values = run(theirs, *wide[0], *wide[1:], training, **options)
        values = [v.to(e.dtype) for v, e in zip(values, expected, strict=True)]
    for i, (a, b, value) in enumerate(zip(ours, expected, values, strict=True)):
        assert a.stride() == b.stride(), f"strides {a.stride()} for torch's {b.stride()}"
        assert_close(a, value, tolerance, f"result {i} of {tuple(x.shape)} {x.stride()}", stride=False)
        assert a.dtype == b.dtype
    return calls


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sample_of_pytorch(dtype):
    count = 0
    for base in INFO.sample_inputs("cpu", dtype, requires_grad=False):
        for sample in (base, base.noncontiguous()):
            given = (
                dict(zip(("running_mean", "running_var", "weight", "bias"), sample.args, strict=False)) | sample.kwargs
            )
            x, training = sample.input, given.get("training", False)
            if training and x.dim() > 1 and x.numel() == x.shape[1]:
                continue
            options = {k: given[k] for k in ("momentum", "eps") if k in given}
            running, affine = (
                [given.get(k) for k in keys] for keys in (("running_mean", "running_var"), ("weight", "bias"))
            )
            judge = torch.float32 if dtype is torch.bfloat16 else None
            calls = compare(x, running, affine, training, TOLERANCE[dtype], judge, **options)
            ours = 2 <= x.dim() <= 4 and x.numel() > 0
            assert bool(calls) == ours, f"{tuple(x.shape)}: {calls}"
            assert not any(call.kernel.endswith("_aten") for call in calls)
            count += ours
    assert count > 10


LYING = {
    "contiguous": lambda t: t(4, 6, 5, 7),
    "channels_last": lambda t: t(4, 6, 5, 7).contiguous(memory_format=torch.channels_last),
    "channels": lambda t: t(4, 12, 5, 7)[:, ::2],
    "columns": lambda t: t(4, 6, 5, 14)[..., ::2],
    "channels_last_channels": lambda t: t(4, 12, 5, 7).contiguous(memory_format=torch.channels_last)[:, :6],
    "rows_and_columns": lambda t: t(4, 6, 7, 5).transpose(2, 3),
    "images_and_channels": lambda t: t(6, 4, 5, 7).transpose(0, 1),
    "expanded": lambda t: t(1, 6, 5, 7).expand(4, 6, 5, 7),
    "odd_offset": lambda t: t(4 * 6 * 35 + 1)[1:].view(4, 6, 5, 7),
    "one_channel": lambda t: t(4, 1, 5, 7).contiguous(memory_format=torch.channels_last),
    "one_pixel": lambda t: t(4, 6, 1, 1).contiguous(memory_format=torch.channels_last),
    "one_pixel_odd": lambda t: t(24).as_strided((4, 6, 1, 1), (6, 1, 7, 9)),
    "sequence": lambda t: t(4, 6, 7),
    "sequence_transposed": lambda t: t(4, 7, 6).transpose(1, 2),
    "sequence_step": lambda t: t(4, 6, 14)[..., ::2],
    "table": lambda t: t(8, 6),
    "table_transposed": lambda t: t(6, 8).t(),
    "one_image": lambda t: t(1, 6, 5, 7).contiguous(memory_format=torch.channels_last),
    "no_image": lambda t: t(0, 6, 5, 7),
    "volume": lambda t: t(2, 6, 2, 3, 4),
}


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lying", LYING)
def test_every_way_to_lie(lying, dtype, training):
    """Values, strides and gradients as torch's; volumes and empty batches are torch's own."""
    x = LYING[lying](lambda *shape: torch.randn(*shape, dtype=dtype))
    *running, w, b = parameters(x.shape[1], dtype)
    for affine, kept in product(((w, b), (None, None), (w, None), (None, b)), (running, [None, None])):
        if kept[0] is None and not training:
            continue
        calls = compare(x, kept, affine, training, 2e-5 if dtype is torch.float32 else 1e-12)
        assert bool(calls) == (lying not in ("no_image", "volume"))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_beside_float_parameters(dtype, layout, training):
    """What torch takes, and the parameters' dtype for their gradients and the running statistics."""
    x = torch.randn(4, 9, 5, 6).to(dtype).contiguous(memory_format=layout)
    for kind in (torch.float32, dtype):
        *running, w, b = parameters(9, kind)
        for affine in ((w, b), (None, None)):
            assert compare(x, running, affine, training, TOLERANCE[torch.bfloat16], torch.float32)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(bad, training, layout):
    """The channel of a NaN or infinity is what torch makes of it; the others are untouched."""
    x = torch.randn(3, 5, 4, 7).contiguous(memory_format=layout)
    x[1, 2, 3, 4] = bad
    *running, w, b = parameters(5)
    ours, expected = (run(f, x, running, (w, b), training) for f in (functional.batch_norm, theirs))
    for a, e in zip(ours, expected, strict=True):
        assert torch.equal(a.isnan(), e.isnan())
        torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_running_statistics_move_as_torchs():
    """Any momentum, strided buffers too; the variance is unbiased."""
    x = torch.randn(3, 4, 5, 6)
    for momentum in (0.0, 0.1, 1.0, 1):
        ours, expected = (torch.stack([torch.arange(4.0), torch.ones(4)], 1) for _ in range(2))
        functional.batch_norm(x, ours[:, 0], ours[:, 1], training=True, momentum=momentum)
        theirs(x, expected[:, 0], expected[:, 1], training=True, momentum=momentum)
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(expected[:, 1], x.var((0, 2, 3)))


ERRORS = {
    "one value a channel": lambda f: f(torch.randn(1, 3), None, None, training=True),
    "one value a channel, map": lambda f: f(torch.randn(1, 3, 1, 1), torch.zeros(3), torch.ones(3), training=True),
    "no running statistics": lambda f: f(torch.randn(2, 3), None, None),
    "no running variance": lambda f: f(torch.randn(2, 3), torch.zeros(3), None),
    "features of the mean": lambda f: f(torch.randn(2, 3), torch.zeros(4), torch.ones(3)),
    "features of the variance": lambda f: f(torch.randn(2, 3), torch.zeros(3), torch.ones(2)),
    "features of the weight": lambda f: f(torch.randn(2, 3), torch.zeros(3), torch.ones(3), torch.ones(4)),
    "features of the bias": lambda f: f(torch.randn(2, 3), torch.zeros(3), torch.ones(3), None, torch.ones(1)),
    "one dimension": lambda f: f(torch.randn(3), torch.zeros(3), torch.ones(3)),
    "double parameters": lambda f: f(torch.randn(2, 3), torch.zeros(3).double(), torch.ones(3).double()),
    "integers": lambda f: f(torch.ones(2, 3, dtype=torch.int64), torch.zeros(3), torch.ones(3)),
    "no tensor": lambda f: f([1.0], torch.zeros(3), torch.ones(3)),
    "eps text": lambda f: f(torch.randn(2, 3), torch.zeros(3), torch.ones(3), eps="a"),
    "momentum None": lambda f: f(torch.randn(2, 3), torch.zeros(3), torch.ones(3), training=True, momentum=None),
}


@pytest.mark.parametrize("what", ERRORS)
def test_error_class_equals_torch(what):
    with pytest.raises(Exception) as expected:  # noqa: PT011
        ERRORS[what](theirs)
    with pytest.raises(type(expected.value)) as ours:
        ERRORS[what](functional.batch_norm)
    assert str(ours.value)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_first_and_second_order_derivatives(training, layout):
    """By finite differences, on our kernels (first order) and through them (second); forward mode is torch's."""
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    *running, w, b = parameters(4, torch.float64)
    w.requires_grad_(), b.requires_grad_()

    def function(x, w, b):
        return functional.batch_norm(x, *(t.clone() for t in running), w, b, training)

    with trace() as calls:
        assert gradcheck(function, (x, w, b))
        function(x, w, b).sum().backward()
    assert {call.kernel.split("/")[1].split("_")[0] for call in calls} >= {"fprop", "dgrad"}
    assert not any("aten" in call.kernel for call in calls)
    assert gradgradcheck(function, (x, w, b))
    assert gradcheck(function, (x, w, b), check_forward_ad=True)
    fixed = [t.detach() for t in (x, w, b)]
    assert gradcheck(lambda w, b: function(fixed[0], w, b), (w, b))
    assert gradcheck(lambda x: function(x, *fixed[1:]), (x,))


def test_only_the_wanted_gradients_are_computed():
    x, (mean, variance, w, b) = torch.randn(2, 4, 3, 5), parameters(4)
    for wanted, training, passes in (
        ("x", False, ["fprop", "fprop"]),  # dy times a number a channel
        ("w", False, ["fprop", "wgrad"]),
        ("w", True, ["fprop", "wgrad"]),
        ("xw", False, ["fprop", "dgrad"]),
        ("x", True, ["fprop", "dgrad"]),
    ):
        leaves = [t for name, t in (("x", x), ("w", w)) if name in wanted]
        for t in (x, w):
            t.requires_grad_(any(t is leaf for leaf in leaves))
        with trace() as calls:
            torch.autograd.grad(functional.batch_norm(x, mean.clone(), variance, w, b, training).sum(), leaves)
        assert [call.problem.pass_ for call in calls] == passes
        assert calls[0].problem.training == training


def test_a_changed_running_statistic_is_noticed():
    """As torch: a backward pass whose saved statistics a training pass moved raises."""
    x, (mean, variance, w, b) = torch.randn(2, 4, 3, 5, requires_grad=True), parameters(4)
    y = functional.batch_norm(x, mean, variance, w.requires_grad_(), b)
    functional.batch_norm(x.detach(), mean, variance, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, layout):
    x, dy = (torch.randn(2, 4, 3, 5).to(dtype).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    mean, variance, w, b = parameters(4, torch.float64 if dtype is torch.float64 else torch.float32)
    w.requires_grad_(), b.requires_grad_()
    torch.library.opcheck(OPS.batch_norm_inference.default, (x, w, b, mean, variance, 1e-5))
    torch.library.opcheck(OPS.batch_norm_inference.default, (x, None, None, None, variance, 1e-5))
    torch.library.opcheck(OPS.batch_norm_train.default, (x, w, b, mean, variance, 0.1, 1e-5))
    torch.library.opcheck(OPS.batch_norm_train.default, (x, w, None, None, None, 0.1, 1e-5))
    for training in (False, True):
        torch.library.opcheck(OPS.batch_norm_dgrad.default, (dy, x, w, mean, variance, training, 1e-5))
        torch.library.opcheck(OPS.batch_norm_wgrad.default, (dy, x, mean, variance, training, 1e-5))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_compiles_whole_with_a_dynamic_batch(training):
    """No graph break forward or backward, one graph for every batch size, and the running statistics move."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def function(x, mean, variance, w, b):
        return functional.batch_norm(x, mean, variance, w, b, training)

    compiled = torch.compile(function, backend=counter, fullgraph=True)
    *running, w, b = parameters(4)
    w.requires_grad_(), b.requires_grad_()
    for batch in (2, 3, 5):
        x = torch.randn(batch, 4, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        torch._dynamo.mark_dynamic(x, 0)
        mine, reference = ([t.clone() for t in running] for _ in range(2))
        y, expected = compiled(x, *mine, w, b), theirs(x, *reference, w, b, training)
        torch.testing.assert_close(y, expected)
        assert y.stride() == expected.stride()
        torch.testing.assert_close(mine, reference)
        grad = torch.randn_like(y)
        ours, expected = (torch.autograd.grad(out, (x, w, b), grad) for out in (y, expected))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_export_trace_and_meta(training):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            mean, variance, weight, bias = parameters(4)
            self.register_buffer("mean", mean), self.register_buffer("variance", variance)
            self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)

        def forward(self, x):
            return functional.batch_norm(x, self.mean, self.variance, self.weight, self.bias, training)

    layer, x = Layer(), torch.randn(2, 4, 3, 5)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2, max=64)}})
    torch.testing.assert_close(program.module()(x), layer(x))
    graph = torch.fx.symbolic_trace(layer)
    assert functional.batch_norm in [node.target for node in graph.graph.nodes]
    torch.testing.assert_close(graph(x), layer(x))
    traced = torch.jit.trace(layer, x, check_trace=False)
    assert "fastconv::batch_norm" in str(traced.graph)
    assert layer.to("meta")(x.to("meta")).is_meta


def test_autocast_leaves_the_dtype_alone():
    x, (mean, variance, w, b) = torch.randn(2, 4, 3, 5), parameters(4)
    with torch.autocast("cpu", torch.bfloat16):
        for each in (x, x.bfloat16()):
            assert functional.batch_norm(each, mean, variance, w, b).dtype == each.dtype
            assert (
                functional.batch_norm(each, mean, variance, w, b, True).dtype
                == theirs(each, mean, variance, w, b, True).dtype
            )


def test_vmap_of_inference():
    x, (mean, variance, w, b) = torch.randn(3, 2, 4, 3, 5), parameters(4)
    ours, expected = (torch.vmap(lambda t, f=f: f(t, mean, variance, w, b))(x) for f in (functional.batch_norm, theirs))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_torchs_rows_agree(training):
    """The same operators on torch's rows of the list."""
    for dtype, layout in product((torch.float32, torch.bfloat16), FORMATS):
        x = torch.randn(3, 6, 4, 5).to(dtype).contiguous(memory_format=layout)
        *running, w, b = parameters(6)
        results = []
        for kernel in ("*blocks*", "*aten*"):
            with config(kernel=kernel), trace() as calls:
                results.append(run(functional.batch_norm, x, running, (w, b), training))
            assert all(kernel.strip("*") in call.kernel for call in calls)
        for a, b in zip(*results, strict=True):
            assert_close(a, b, TOLERANCE[dtype], "result")
