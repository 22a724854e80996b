"""What works on rows of features runs in plans: layer norms, softmax, attention, and views that copy nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastconv.graph import load_plan, optimize
from fastconv.graph.device_plan import DevicePlan
from fastconv.graph.plan import Plan


class Calls(nn.Module):
    """A function between layers of a plan: a convolution to 12 channels before it, the sum with a parameter behind."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module):
        super().__init__()
        self.first, self.layers, self.function = nn.Conv2d(3, 12, 3, padding=1), nn.ModuleDict(layers), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x), **self.layers)


def held(model: nn.Module, *shape: int, single: bool = True, dtype: torch.dtype = torch.float64) -> object:
    """The plan of a model, equal to it for several batches, in one piece if ``single``."""
    torch.manual_seed(0)
    model = model.to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(shape, dtype=dtype)
    plan = optimize(model, x)
    assert not single or (len(plan.parts) == 1 and not plan.report.left), plan.report
    bound = {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    for images in (x, torch.randn(5, *shape[1:], dtype=dtype), x[:1], x.contiguous(memory_format=torch.channels_last)):
        with torch.no_grad():
            torch.testing.assert_close(plan(images), model(images), rtol=bound, atol=bound)
    return plan


def problems(plan: object, *shape: int, dtype: torch.dtype = torch.float64) -> list[str]:
    return [problem for stage in plan.timings(torch.randn(shape, dtype=dtype)) for problem in stage.problems]


def rows_block(y: Tensor, norm, wide, narrow) -> Tensor:
    """A ConvNeXt block: features come last for the norm and the linear layers."""
    rows = norm(y.permute(0, 2, 3, 1))
    return y + narrow(F.gelu(wide(rows))).permute(0, 3, 1, 2)


def test_a_block_with_its_features_last_copies_nothing():
    layers = {"norm": nn.LayerNorm(12), "wide": nn.Linear(12, 40), "narrow": nn.Linear(40, 12)}
    plan = held(Calls(rows_block, **layers), 2, 3, 5, 7)
    steps = problems(plan, 2, 3, 5, 7)
    assert not any(text.startswith("copy2d") for text in steps)
    assert sum(text.startswith("reorder2d") for text in steps) == 2  # the input and the result, which are in NCHW
    assert sum(text.startswith("layernorm2d_n70c12") for text in steps) == 1


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_layer_norms_over_last_axes(axes):
    norm = nn.LayerNorm((12, 5, 7)[3 - axes :])
    held(Calls(lambda y, norm: norm(y), norm=norm), 2, 3, 5, 7)
    held(Calls(lambda y: F.layer_norm(y, (7,))), 2, 3, 5, 7)


def test_softmax_over_the_last_axis_alone():
    held(Calls(lambda y: y.flatten(1).softmax(-1)), 2, 3, 5, 7)
    held(Calls(lambda y: y.permute(0, 2, 3, 1).softmax(3)), 2, 3, 5, 7)
    plan = held(Calls(lambda y: y.softmax(1)), 2, 3, 5, 7, single=False)
    assert "aten.softmax.int" in plan.report.left


def heads(y: Tensor, qkv: nn.Module, out: nn.Module, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Self-attention of three heads over the pixels of a map."""
    tokens = y.flatten(2).transpose(1, 2)
    n, count, _ = tokens.shape
    q, k, v = qkv(tokens).reshape(n, count, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return out(y.transpose(1, 2).reshape(n, count, 12))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_reads_its_tokens_where_they_lie(masked, scale):
    class Attention(Calls):
        def __init__(self):
            super().__init__(heads, qkv=nn.Linear(12, 36), out=nn.Linear(12, 5))
            self.register_buffer("mask", torch.randn(3, 35, 35).masked_fill(torch.rand(3, 35, 35) < 0.2, -torch.inf))

        def forward(self, x):
            return self.function(self.first(x), mask=self.mask[None] if masked else None, scale=scale, **self.layers)

    plan = held(Attention(), 2, 3, 5, 7)
    steps = problems(plan, 2, 3, 5, 7)
    assert not any(text.startswith("copy2d") for text in steps)
    assert sum(text.startswith("attention_n2c12h35w1_k12r35s1_g3") for text in steps) == 1


def test_torch_s_attention_layer_is_one_plan():
    """Its tokens come as (tokens, N, channels) on the way, behind a class token and with a table of places."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.attention = nn.Conv2d(3, 12, 2, stride=2), nn.MultiheadAttention(12, 3, batch_first=True)
            self.token, self.places = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 13, 12))

        def forward(self, x):
            tokens = self.patches(x).reshape(x.shape[0], 12, 12).permute(0, 2, 1)
            tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.places
            y, _ = self.attention(tokens, tokens, tokens, need_weights=False)
            return (tokens + y)[:, 0]

    plan = held(Layer(), 2, 3, 6, 8)
    assert not any(text.startswith("copy2d") for text in problems(plan, 2, 3, 6, 8))


VIEWS = {
    "shuffled": lambda y: y.view(y.shape[0], 3, 4, 5, 7).transpose(1, 2).reshape(y.shape) * 1.5,
    "in two": lambda y: torch.cat([torch.relu(part) for part in y.chunk(2, 1)][::-1], 1),
    "uneven": lambda y: torch.relu(y.split([5, 7], 1)[1]),
    "one of each": lambda y: torch.relu(y[:, 3]),
    "a row": lambda y: torch.relu(y[:, :, 2]),
    "columns": lambda y: torch.relu(y[..., 1:4]),
    "turned": lambda y: torch.relu(y.transpose(2, 3)),
    "flat": lambda y: torch.relu(y.permute(0, 3, 1, 2).flatten(1)),
    "windows": lambda y: torch.relu(
        y[:, :, :4, :6].reshape(-1, 12, 2, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 12)
    ),
    "many axes": lambda y: torch.relu(y[..., :6].reshape(-1, 2, 2, 3, 5, 2, 3).permute(0, 5, 1, 4, 2, 6, 3).flatten(2)),
    "itself": lambda y: y.permute(0, 2, 3, 1),
    "a part of itself": lambda y: y.permute(0, 2, 3, 1)[:, 1:3],
    "scaled": lambda y: (y + 0.5) * 3.0,
    "mean": lambda y: y.mean((2, 3)),
    "gated": lambda y: y * F.hardsigmoid(y.mean((2, 3), keepdim=True)),
    "gelu by tanh": lambda y: F.gelu(y, approximate="tanh"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    held(Calls(VIEWS[name]), 2, 3, 5, 7)


def test_shuffled_channels_are_turned_pixel_by_pixel():
    steps = problems(held(Calls(VIEWS["shuffled"]), 2, 3, 5, 7), 2, 3, 5, 7)
    assert not any(text.startswith("copy2d") for text in steps)
    assert [text for text in steps if text.startswith("reorder2d")][1] == "reorder2d_n70c3h1w4_f64nchw"


def test_permutations_of_many_axes_are_a_few_copies():
    def function(y: Tensor) -> Tensor:
        return torch.relu(y.permute(0, 2, 3, 1).reshape(-1, 5, 7, 2, 2, 3).permute(0, 2, 5, 1, 4, 3).flatten(1))

    steps = problems(held(Calls(function), 2, 3, 5, 7), 2, 3, 5, 7)
    assert 1 < sum(text.startswith(("copy2d", "reorder2d")) for text in steps[1:]) < 5, steps


def test_one_result_under_several_shapes():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.layer(x)
            return y, y.permute(0, 2, 3, 1), y.flatten(2), y[:, 1:3], y.flatten(1)

    held(Several(), 2, 3, 5, 7)


def random_view(rng: random.Random, x: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A view operator for a tensor like x that leaves the images' axis, the first, and a last one behind it."""
    axis = rng.randrange(1, x.dim())
    match rng.choice(("permute", "permute", "narrow", "split", "join", "select")):
        case "permute":
            axes = [0, *rng.sample(range(1, x.dim()), x.dim() - 1)]
            return f"permute{axes}", lambda t: t.permute(axes)
        case "narrow" if x.shape[axis] > 2:
            return f"narrow {axis}", lambda t: t.narrow(axis, 1, x.shape[axis] - 2)
        case "split" if x.shape[axis] % 2 == 0 and x.dim() < 6:
            return f"split {axis}", lambda t: t.unflatten(axis, (2, x.shape[axis] // 2))
        case "join" if axis > 1:
            return f"join {axis}", lambda t: t.flatten(axis - 1, axis)
        case "select" if x.dim() > 2:
            return f"select {axis}", lambda t: t.select(axis, x.shape[axis] - 1)
    return "relu", torch.relu


@pytest.mark.parametrize("seed", range(12))
def test_random_views(seed):
    """Chains of views with layers on whatever axis comes last."""
    rng, steps, names = random.Random(seed), [], []
    x = torch.randn(2, 12, 4, 6, dtype=torch.float64)
    for _ in range(7):
        name, step = random_view(rng, x)
        steps.append(step), names.append(name)
        x = step(x)
        last = x.shape[-1]
        layer = rng.choice((None, None, nn.Linear(last, 4), nn.LayerNorm(last), torch.relu))
        if layer is not None:
            layer = layer.double() if isinstance(layer, nn.Module) else layer
            steps.append(layer), names.append(str(layer))
            x = layer(x)

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 12, 1)
            self.layers = nn.ModuleList(step for step in steps if isinstance(step, nn.Module))

        def forward(self, x):
            y = self.first(x)
            for step in steps:
                y = step(y)
            return y

    try:
        held(Chain(), 2, 3, 4, 6)
    except AssertionError as error:
        raise AssertionError(f"{names}: {error}") from None


def test_the_same_steps_run_one_by_one():
    """As on a GPU, with PyTorch's rows."""

    class Straight:
        def record(self, run, inputs):
            return run

    layers = {"qkv": nn.Linear(12, 36), "out": nn.Linear(12, 5)}
    for model in (Calls(heads, **layers), Calls(VIEWS["many axes"]), Calls(VIEWS["shuffled"])):
        plan, x = held(model, 2, 3, 5, 7), torch.randn(2, 3, 5, 7, dtype=torch.float64)
        assert isinstance(plan.units[0], Plan)
        steps = DevicePlan(plan.network, plan.parts[0], torch.device("cpu")).steps([x])
        torch.testing.assert_close(steps([x])[0], model(x), rtol=1e-11, atol=1e-11)


def test_files_hold_them(tmp_path):
    layers = {"qkv": nn.Linear(12, 36), "out": nn.Linear(12, 5)}
    plan, x = held(Calls(heads, **layers), 2, 3, 5, 7), torch.randn(3, 3, 5, 7, dtype=torch.float64)
    plan.save(tmp_path / "plan.safetensors")
    assert torch.equal(load_plan(tmp_path / "plan.safetensors")(x), plan(x))


def test_no_image_and_one_element():
    plan = held(Calls(heads, qkv=nn.Linear(12, 36), out=nn.Linear(12, 5)), 2, 3, 5, 7)
    assert plan(torch.randn(0, 3, 5, 7, dtype=torch.float64)).shape == (0, 35, 5)
    held(Calls(lambda y, norm: norm(y.flatten(1)), norm=nn.LayerNorm(12)), 2, 3, 1, 1)
