"""``functional.conv2d_batch_norm`` on the kernels: values, gradients of both orders, autocast, tracing, bad input."""

from __future__ import annotations

import random

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from fastconv import functional
from fastconv.functional import conv_norm

F = torch.nn.functional
EPS = 1e-3
RANDOM = 100
OWN = {"momentum": 0.3, "eps": EPS}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """The kernels of GPUs, interpreted for CPU tensors."""
    monkeypatch.setattr(conv_norm, "DEVICES", ("cpu",))


def activated(x, activation, alpha):
    if activation == "leaky_relu":
        return F.leaky_relu(x, alpha)
    if activation == "gelutanh":
        return F.gelu(x, approximate="tanh")
    return x if activation == "none" else getattr(F, activation)(x)


def composed(x, w, mean, variance, scale, shift, residual=None, second=None, activation="none", alpha=0.0, **options):
    """The same by torch's functions."""
    behind = {name.removeprefix("second_"): options.pop(name) for name in list(options) if name.startswith("second_")}
    y = F.batch_norm(F.conv2d(x, w, None, **options), mean, variance, scale, shift, True, 0.3, EPS)
    y = y if residual is None else y + residual
    y = activated(y, activation, alpha)
    return y if second is None else F.conv2d(y, second, None, **behind)


GEOMETRIES = {
    "dense": {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    "grouped": {"groups": 3},
    "pointwise": {"stride": (1, 2)},
}
SECONDS = {
    "pointwise": ((5, 9, 1, 1), {}),
    "second": ((4, 9, 3, 2), {"second_padding": (2, 1), "second_stride": (1, 2)}),
    "grouped second": ((6, 3, 2, 3), {"second_padding": (1, 2), "second_groups": 3, "second_dilation": (1, 2)}),
}


def leaves_of(x, w, residual=False, second=None, options=None):
    channels = w.shape[0]
    leaves = {"x": x, "w": w, "scale": torch.rand(channels) + 0.5, "shift": torch.randn(channels)}
    if residual:
        leaves["residual"] = torch.randn_like(F.conv2d(x, w, None, **(options or {})))
    if second is not None:
        leaves["second"] = second
    return leaves


def results_of(function, dtype, leaves, order, options):
    """The result, the running statistics, and the gradients of one or both orders."""
    own = {name: t.detach().to(dtype).requires_grad_() for name, t in leaves.items()}
    channels = leaves["w"].shape[0]
    running = torch.zeros(channels, dtype=dtype), torch.ones(channels, dtype=dtype)
    more = {name: own[name] for name in ("residual", "second") if name in own}
    ours = OWN if function is not composed else {}
    y = function(own["x"], own["w"], *running, own["scale"], own["shift"], **options, **more, **ours)
    inputs = list(own.values())
    probe = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape).requires_grad_()
    first = torch.autograd.grad(y, inputs, probe, create_graph=order == 2)
    found = [y, *running, *first]
    if order == 2:
        total = sum((g * torch.linspace(-1, 2, g.numel(), dtype=dtype).view(g.shape)).sum() for g in first)
        found += torch.autograd.grad(total, [*inputs, probe], allow_unused=True, materialize_grads=True)
    return found


def check(leaves, order=1, tolerance=1e-4, **options):
    mine = results_of(functional.conv2d_batch_norm, torch.float32, leaves, order, options)
    exact = results_of(composed, torch.float64, leaves, order, options)
    for i, (a, b) in enumerate(zip(mine, exact, strict=True)):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance, msg=lambda m, i=i: f"{i}: {m}")
    assert mine[0].stride() == exact[0].stride()


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("behind", ["nothing", "residual", *SECONDS])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_function_and_its_gradients_are_torchs_in_double(geometry, behind, format):
    options, activation = GEOMETRIES[geometry], "none" if geometry == "grouped" else "relu"
    window = (1, 1) if geometry == "pointwise" else (3, 2)
    x, w = torch.randn(2, 6, 8, 7).to(memory_format=format), torch.randn(9, 6 // options.get("groups", 1), *window)
    shape, second = SECONDS.get(behind, (None, {}))
    filters = None if shape is None else torch.randn(shape)
    check(leaves_of(x, w, behind == "residual", filters, options), **options, **second, activation=activation)


@pytest.mark.parametrize("behind", ["residual", "second"])
@pytest.mark.parametrize("activation", [name for name in conv_norm.ACTIVATIONS if name != "hardsigmoid"])
def test_every_activation_to_second_order(activation, behind):
    """But hardsigmoid, of which torch has none."""
    x, w = torch.randn(2, 3, 5, 4), torch.randn(9, 3, 2, 2)
    shape, options = SECONDS["second"] if behind == "second" else (None, {})
    filters = None if shape is None else torch.randn(shape)
    leaves = leaves_of(x, w, behind == "residual", filters)
    options = options | {"activation": activation, "alpha": 0.2 if activation == "leaky_relu" else 0.0}
    check(leaves, 2, 1e-3, **options)


def test_a_leaky_relu_that_folds_is_differentiated_from_its_argument():
    """Its result does not tell on which side of zero it came from."""
    x, w = torch.randn(2, 3, 5, 4), torch.randn(9, 3, 2, 2)
    check(leaves_of(x, w, residual=True), 2, 1e-3, activation="leaky_relu", alpha=-0.5)


def test_the_result_takes_torchs_layout_of_the_filters():
    last = torch.channels_last
    x, w, second = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 2, 2), torch.randn(5, 4, 2, 2)
    for filters in (w, w.to(memory_format=last)):
        for behind in (None, second, second.to(memory_format=last)):
            y = functional.conv2d_batch_norm(x, filters, None, None, second=behind)
            assert y.stride() == composed(x, filters, None, None, None, None, second=behind).stride()
    # A norm of one channel lies as NCHW, wherever the convolution's result lay.
    x, w, second = x.to(memory_format=last), torch.randn(1, 3, 2, 2), torch.randn(5, 1, 2, 2)
    y = functional.conv2d_batch_norm(x, w, None, None, second=second)
    assert y.stride() == composed(x, w, None, None, None, None, second=second).stride()


def test_what_backward_keeps_has_no_gradient():
    x, w = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(4, 3, 2, 2)
    geometry = [1, 1, 0, 0, 0, 0, 1, 1, 1]
    z, stats = torch.ops.fastconv.conv2d_moments(x, w, geometry)
    results = torch.ops.fastconv.norm_conv2d(
        z, stats, None, None, w.mT.mT[:, :1], [*geometry[:8], 4], EPS, "relu", 0.0, True
    )
    assert [t.requires_grad for t in (z, stats, *results)] == [True, False, True, False]


def test_a_second_convolution_gives_the_bits_of_a_stored_norm():
    x, w, second = torch.randn(2, 6, 7, 5), torch.randn(8, 6, 3, 3), torch.randn(7, 8, 3, 3)
    affine = torch.rand(8), torch.randn(8)
    y = functional.conv2d_batch_norm(x, w, None, None, *affine, activation="silu", second=second, second_padding=1)
    z, stats = torch.ops.fastconv.conv2d_moments(x, w, [1, 1, 0, 0, 0, 0, 1, 1, 1])
    stored = torch.ops.fastconv.norm_apply(z, stats, *affine, None, 1e-5, "silu", 0.0)
    from fastconv.kernels import triton as rows
    from fastconv.problem import Problem

    expected, launches = rows.load("conv_fprop").plan(Problem("n2c8h5w3_k7r3s3_p1_f32nchw"), x=stored, w=second)
    for launch in launches:
        launch()
    assert torch.equal(y, expected)


def random_call(rng: random.Random):
    """Leaves and options of a small call."""

    def pair(low, high):
        return rng.randint(low, high), rng.randint(low, high)

    def convolution(c, h, w):
        while True:
            groups = rng.choice((1, 1, 1, 2, 3))
            depth, k, window = -(-c // groups), groups * rng.randint(1, 6), pair(1, 3)
            if rng.random() < 0.3:
                window = (1, 1)
            stride, dilation, padding = pair(1, 2), pair(1, 2), pair(0, 2)
            sizes = [
                (s + 2 * p - d * (r - 1) - 1) // u + 1
                for s, p, d, r, u in zip((h, w), padding, dilation, window, stride, strict=True)
            ]
            if depth * groups == c and min(sizes) >= 1:
                options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
                return torch.randn(k, depth, *window), options, sizes

    while True:
        n, c, h, w = rng.randint(1, 3), rng.choice((1, 2, 3, 6, 17)), rng.randint(1, 8), rng.randint(1, 9)
        weight, options, sizes = convolution(c, h, w)
        if n * sizes[0] * sizes[1] >= 6:  # few values make a deviation of none, whose inverse magnifies rounding
            break
    activation = rng.choice(conv_norm.ACTIVATIONS)
    format = rng.choice((torch.contiguous_format, torch.channels_last))
    behind, second = rng.choice(("nothing", "residual", "second", "second")), None
    more = {"activation": activation, "alpha": rng.choice((0.3, -0.3)) if activation == "leaky_relu" else 0.0}
    given = options
    if behind == "second":
        second, after, _ = convolution(weight.shape[0], *sizes)
        more |= {f"second_{name}": value for name, value in after.items()}
    x = torch.randn(n, c, h, w).to(memory_format=format)
    return leaves_of(x, weight, behind == "residual", second, given), {**options, **more}


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(s, marks=pytest.mark.full) for s in range(3, RANDOM))])
def test_random_calls(seed):
    torch.manual_seed(seed)
    leaves, options = random_call(random.Random(seed))
    check(leaves, 2 if seed % 4 == 0 else 1, 2e-3, **options)


@pytest.mark.parametrize("behind", ["pointwise", "second"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_runs_in_its_dtype_with_parameters_of_float(dtype, behind):
    shape, options = SECONDS[behind]
    x, w, p = torch.randn(2, 6, 8, 7), torch.randn(9, 6, 3, 2, requires_grad=True), torch.randn(shape)
    scale, shift = (torch.rand(9) + 0.5).requires_grad_(), torch.randn(9)
    mean, variance = torch.zeros(9), torch.ones(9)
    with torch.autocast("cpu", dtype=dtype):
        y = functional.conv2d_batch_norm(x, w, mean, variance, scale, shift, second=p, activation="silu", **options)
    expected = composed(x, w, None, None, scale, shift, second=p, activation="silu", **options)
    assert y.dtype == dtype and mean.abs().sum() > 0
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.15)
    gradients, exact = (torch.autograd.grad(t.float().square().sum(), (w, scale)) for t in (y, expected))
    for mine, torchs in zip(gradients, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - torchs).norm() <= 0.05 * torchs.norm()


def test_frozen_and_missing_parameters():
    """What needs no gradient gets none, and absent parameters and statistics are allowed."""
    x, w = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = functional.conv2d_batch_norm(x, w, None, None)
    expected = F.batch_norm(F.conv2d(x, w), None, None, training=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for mine, exact in zip(*(torch.autograd.grad((t**2).sum() + t[0].sum(), w) for t in (y, expected)), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-3, atol=1e-3)


class Block(torch.nn.Module):
    """Convolution, norm and what is behind them."""

    def __init__(self, behind):
        super().__init__()
        shape, self.options = SECONDS.get(behind, (None, {}))
        self.conv, self.norm = torch.nn.Conv2d(3, 9, (3, 2), bias=False), torch.nn.BatchNorm2d(9, EPS, 0.3)
        self.second = None if shape is None else torch.nn.Parameter(torch.randn(shape))
        self.behind = behind

    def forward(self, x):
        running = self.norm.running_mean, self.norm.running_var
        residual = x[:, :1, 2:, 1:].expand(-1, 9, -1, -1) if self.behind == "residual" else None
        return functional.conv2d_batch_norm(
            x,
            self.conv.weight,
            *running,
            self.norm.weight,
            self.norm.bias,
            activation="hardswish",
            residual=residual,
            second=self.second,
            **OWN,
            **self.options,
        )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("behind", ["nothing", "residual", "second"])
def test_compiles_whole_with_a_dynamic_batch(behind, backend):
    """No graph break, one graph for every batch; result, gradients and running statistics as they are eagerly."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    block, twin = Block(behind), Block(behind)
    twin.load_state_dict(block.state_dict())
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 3, 6, 5)
        torch._dynamo.mark_dynamic(x, 0)
        results = []
        for function, module in ((compiled, block), (twin, twin)):
            own = x.clone().requires_grad_()
            if function is compiled:
                torch._dynamo.mark_dynamic(own, 0)
            y = function(own)
            probe = torch.linspace(-1, 1, y.numel()).view(y.shape)
            parameters = [own, *module.parameters()]
            results.append([y, *torch.autograd.grad(y, parameters, probe), *module.buffers()])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert results[0][0].stride() == results[1][0].stride()
    assert counter.frame_count == 1


@pytest.mark.parametrize("behind", ["nothing", "residual", "second"])
def test_exports(behind):
    block, x = Block(behind), torch.randn(4, 3, 6, 5)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(block, (x,), dynamic_shapes={"x": batch})
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(target.startswith("fastconv.conv2d_moments") for target in targets) == 1
    assert torch.equal(program.module()(x[:3]), block(x[:3]))


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_opcheck(format):
    x, w = (torch.randn(2, 3, 5, 4).to(memory_format=format).requires_grad_(), torch.randn(9, 3, 2, 2).requires_grad_())
    scale, shift = torch.rand(9, requires_grad=True), torch.randn(9, requires_grad=True)
    residual, second = torch.randn(2, 9, 4, 3, requires_grad=True), torch.randn(4, 9, 3, 2, requires_grad=True)
    geometry, behind = [1, 1, 0, 0, 0, 0, 1, 1, 1], [2, 1, 1, 0, 2, 1, 1, 1, 1]
    ops = torch.ops.fastconv
    torch.library.opcheck(ops.conv2d_moments.default, (x, w, geometry))
    z, stats = torch.randn_like(residual, requires_grad=True), torch.rand(2, 9)
    for measures in (False, True):
        arguments = (z, stats, scale, shift, second, behind, EPS, "silu", 0.0, measures)
        torch.library.opcheck(ops.norm_conv2d.default, arguments)
    for added, activation in ((residual, "relu"), (None, "gelu")):
        torch.library.opcheck(ops.norm_apply.default, (z, stats, scale, None, added, EPS, activation, 0.0))
    z = z.detach()
    given = torch.randn_like(z), z, stats, scale.detach(), shift.detach()
    torch.library.opcheck(ops.norm_grad.default, (*given, None, EPS, "silu", 0.0, False))
    torch.library.opcheck(ops.norm_grad.default, (*given, torch.randn_like(z), EPS, "relu", 0.0, True))


def test_tangents_and_batches_of_calls_are_carried():
    x, w = torch.randn(2, 3, 5, 4), torch.randn(4, 3, 3, 3)
    tangent = torch.randn_like(x)

    def function(x):
        return functional.conv2d_batch_norm(x, w, None, None, eps=EPS)

    def exact(x):
        return composed(x, w, None, None, None, None)

    expected = torch.func.jvp(exact, (x,), (tangent,))[1]
    torch.testing.assert_close(torch.func.jvp(function, (x,), (tangent,))[1], expected, rtol=1e-3, atol=1e-4)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    both = torch.func.vmap(function)(torch.stack([x, tangent]))
    assert torch.equal(both, torch.stack([function(x), function(tangent)]))


def test_traces_symbolically_as_one_call():
    graph = torch.fx.symbolic_trace(Block("second"))
    assert functional.conv2d_batch_norm in [node.target for node in graph.graph.nodes]


def test_bad_input_is_named():
    x, w = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    call = functional.conv2d_batch_norm
    for error, part, arguments, options in (
        (ValueError, "'tanh'", (x, w), {"activation": "tanh"}),
        (ValueError, "give one of them", (x, w), {"residual": x, "second": w}),
        (ValueError, r"more than one value a channel.*\(1, 6, 1, 1\)", (x[:1, :, :3, :3], w), {}),
        (RuntimeError, r"weight has shape \(6, 5, 3, 3\), but C=4 in 1 groups", (x, torch.randn(6, 5, 3, 3)), {}),
        (RuntimeError, "weight is torch.float16", (x, w.half()), {}),
        (RuntimeError, "weight is torch.float32 on cpu of 3 dimensions", (x, w[0]), {}),
        (RuntimeError, r"residual has shape \(2, 6, 5, 5\)", (x, w), {"residual": torch.randn(2, 6, 5, 5)}),
        (RuntimeError, r"second has shape \(3, 5, 1, 1\), but C=6", (x, w), {"second": torch.randn(3, 5, 1, 1)}),
        (ValueError, "no second convolution", (x, w), {"second_activation": "relu"}),
        (ValueError, "second_activation is one of .*'tanh'", (x, w), {"second": w, "second_activation": "tanh"}),
        (
            RuntimeError,
            r"second_norm_bias has shape \(6,\) on cpu, but there are 3",
            (x, w),
            {"second": torch.randn(3, 6, 1, 1), "second_activation": "none", "second_norm_bias": torch.ones(6)},
        ),
        (
            RuntimeError,
            r"residual has shape \(2, 6, 3, 3\), but the result needs \(2, 3, 3, 3\)",
            (x, w),
            {"second": torch.randn(3, 6, 1, 1), "second_activation": "relu", "residual": torch.randn(2, 6, 3, 3)},
        ),
        (RuntimeError, "second is .* of 3 dimensions", (x, w), {"second": torch.randn(3, 6, 1)}),
        (RuntimeError, r"norm_weight has shape \(5,\)", (x, w), {"norm_weight": torch.ones(5)}),
        (RuntimeError, r"running_mean has shape \(7,\)", (x, w), {"mean": torch.ones(7)}),
    ):
        with pytest.raises(error, match=part):
            call(*arguments, options.pop("mean", None), None, **options)
