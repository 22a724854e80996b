"""Sequences of a swapped model: what runs in one call, what stays apart, and that nobody can tell but by the time."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import fastconv
from fastconv.models import create_model
from fastconv.profiling.trace import trace
from tests.nn.models import snapshot

ACTIVATIONS = (nn.ReLU(), nn.ReLU(True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid())
ACTIVATIONS += (nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"))
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-5, 1e-5), torch.bfloat16: (5e-2, 2e-2)}


class ConvNorm(nn.Sequential):
    """What many models call their building block."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6())


class Counted(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def norm(channels: int = 8, **options) -> nn.BatchNorm2d:
    """A batch norm that has seen something."""
    layer = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.weight, layer.bias):
            if tensor is not None:
                tensor.normal_()
        if layer.running_var is not None:
            layer.running_var.uniform_(0.3, 3)
    return layer


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(6, 8, 3, **({"padding": 1} | options))


def swapped(model: nn.Module, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """The model in eval mode, and a swapped copy."""
    model = model.eval().to(dtype)
    ours = copy.deepcopy(model)
    fastconv.swap(ours)
    return model, ours


def problems(model: nn.Module, x: torch.Tensor) -> list[str]:
    """What kernels ran in one inference."""
    with torch.inference_mode(), trace() as calls:
        model(x)
    return [str(call.problem) for call in calls]


def agree(model: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        expected, y = model(x), ours(x)
    rtol, atol = TOLERANCES[x.dtype]
    torch.testing.assert_close(y, expected, rtol=rtol, atol=atol, check_stride=True)


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_its_norm_and_its_activation_are_one_call(bias, activation, dtype, format):
    layers = (conv(bias=bias), norm(), *([] if activation is None else [activation]), nn.Conv2d(8, 3, 1))
    model, ours = swapped(nn.Sequential(*layers).to(memory_format=format), dtype)
    x = torch.randn(2, 6, 9, 7, dtype=dtype).contiguous(memory_format=format)
    first, second = problems(ours, x)
    name = "" if activation is None else f"_{type(activation).__name__}"
    assert "_bias" in first and name.lower() in first.replace("leaky_relu", "leakyrelu")
    assert "k3r1s1" in second
    agree(model, ours, x)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_without_a_norm(dtype, activation):
    model, ours = swapped(nn.Sequential(conv(), activation), dtype)
    x = torch.randn(1, 6, 5, 8, dtype=dtype)
    assert len(problems(ours, x)) == 1
    agree(model, ours, x)


@pytest.mark.parametrize(
    ("options", "norm_options"),
    [
        ({"groups": 2, "stride": 2, "dilation": 2}, {}),
        ({"kernel_size": (1, 3), "padding": (0, 1), "bias": False}, {"affine": False}),
        ({"padding": 0}, {"eps": 0.1}),
    ],
)
def test_geometries_and_norms(options, norm_options):
    layer = nn.Conv2d(6, 8, **({"kernel_size": 3, "padding": 1} | options))
    model, ours = swapped(nn.Sequential(layer, norm(**norm_options), nn.ReLU()))
    x = torch.randn(4, 6, 9, 7, dtype=torch.float64)
    assert len(problems(ours, x)) == 1
    agree(model, ours, x)


def test_parameters_are_read_in_every_call():
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    agree(model, ours, x)
    for both in (model, ours):
        with torch.no_grad():
            both[0].weight.mul_(2)
            both[1].running_var.add_(1)
            both[1].bias.fill_(0.25)
    agree(model, ours, x)


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        (lambda m: m[0].register_forward_hook(lambda *_: None), 2),
        (lambda m: m[1].register_forward_pre_hook(lambda *_: None), 2),
        (lambda m: m[2].register_forward_hook(lambda _, __, y: y * 2), 2),
        (lambda m: m[1].train(), 2),
        (lambda m: setattr(m[1], "forward", lambda x: x + 1), 1),
        (lambda m: setattr(m[2], "forward", lambda x: x + 1), 2),
        (lambda m: setattr(m[0], "_conv_forward", lambda x, w, b: nn.functional.conv2d(x, w, b)), 1),
    ],
    ids=[
        "hook",
        "pre_hook",
        "hook that changes",
        "training norm",
        "norm replaced",
        "activation replaced",
        "conv replaced",
    ],
)
def test_watched_and_changed_layers_run_apart(change, calls):
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    for both in (model, ours):
        change(both)
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    assert len(problems(copy.deepcopy(ours), x)) == calls
    agree(model, ours, x)


def test_a_hook_on_every_module_sees_every_layer():
    _, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        with torch.inference_mode():
            ours(torch.randn(1, 6, 8, 8, dtype=torch.float64))
    finally:
        handle.remove()
    assert seen == ["Conv2d", "BatchNorm2d", "ReLU", "Sequential"]


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (conv(), norm(track_running_stats=False), nn.ReLU()),
        lambda: (conv(padding_mode="reflect"), norm(), nn.ReLU()),
        lambda: (conv(padding="same"), norm(), nn.ReLU()),
        lambda: (conv(), nn.Dropout(), norm(), nn.ReLU()),
    ],
    ids=["no running statistics", "reflect", "same", "dropout between"],
)
def test_what_runs_apart(layers):
    model, ours = swapped(nn.Sequential(*layers()))
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    assert len(problems(ours, x)) == 2
    agree(model, ours, x)


def test_filters_with_gaps_run_apart():
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    wide = torch.randn(8, 12, 3, 3, dtype=torch.float64)
    for both in (model, ours):
        both[0].weight.data = wide[:, ::2]
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    assert len(problems(ours, x)) == 2
    agree(model, ours, x)


def test_a_result_smaller_than_the_filter_is_normed_itself():
    model, ours = swapped(nn.Sequential(nn.Conv2d(64, 8, 3, padding=1), norm(), nn.ReLU()))
    assert len(problems(ours, torch.randn(1, 64, 24, 24, dtype=torch.float64))) == 1  # 576 pixels, 576 taps a filter
    small = torch.randn(1, 64, 24, 23, dtype=torch.float64)
    assert len(problems(ours, small)) == 2
    agree(model, ours, small)


def test_gradients_are_those_of_the_layers():
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.SiLU()))
    gradients = []
    for both in (model, ours):
        x = torch.ones(2, 6, 9, 7, dtype=torch.float64).requires_grad_()
        gradients.append(torch.autograd.grad(both(x).square().sum(), [x, *both.parameters()]))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_transforms_autocast_and_subclasses_see_the_layers():
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    parameters, buffers = stack_module_state([ours, copy.deepcopy(ours)])
    with torch.no_grad():
        many = vmap(lambda p, b: functional_call(ours, (p, b), (x,)))(parameters, buffers)
        torch.testing.assert_close(many[1], model(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        both = model.float()(x.float()), ours.float()(x.float())
    assert both[0].dtype == both[1].dtype
    torch.testing.assert_close(both[1], both[0], rtol=5e-2, atol=5e-2)

    class Named(torch.Tensor):
        pass

    with torch.no_grad():
        assert isinstance(ours(x.float().as_subclass(Named)), Named)


def test_empty_batches_single_images_and_bad_channels():
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    with torch.no_grad():
        assert ours(torch.zeros(0, 6, 9, 7, dtype=torch.float64)).shape == (0, 8, 9, 7)
        x = torch.randn(1, 6, 9, 7, dtype=torch.float64)
        with pytest.raises(ValueError, match="expected 4D input"):
            ours(x[0])
        errors = []
        for layer in (ours, ours[0]):
            with pytest.raises(RuntimeError) as error:
                layer(x[:, :5])
            errors.append(str(error.value))
        assert errors[0] == errors[1]
        agree(model, ours, x)


def test_a_compiled_and_a_traced_model_know_the_layers():
    model, ours = swapped(nn.Sequential(conv(), norm(), nn.ReLU()))
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    with torch.no_grad():
        traced = torch.jit.trace(ours, x)
        graph = torch.fx.symbolic_trace(ours).graph
        program = torch.export.export(ours, (x,))
        compiled = torch.compile(ours, backend="eager", fullgraph=True)
        for run in (traced, program.module(), compiled):
            torch.testing.assert_close(run(x), model(x))
    assert "batch_norm" in str(traced.inlined_graph)
    assert len([node for node in graph.nodes if node.op.startswith("call")]) == 3
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_subclasses_keep_their_name_their_kind_and_their_copies(clone):
    model = nn.Sequential(
        OrderedDict(first=ConvNorm(3, 4), second=ConvNorm(4, 5), third=Counted(conv(), nn.ReLU()))
    ).eval()
    before = snapshot(model)
    report = fastconv.swap(model)
    assert report.sequences == ("first", "second")
    assert "2 sequences run" in str(report)
    assert type(model) is nn.Sequential and type(model.third) is Counted
    assert isinstance(model.first, ConvNorm) and type(model.first).__name__ == "ConvNorm"
    assert repr(model.first) == repr(ConvNorm(3, 4))
    other = clone(model)
    assert type(other.first) is type(model.first)
    assert len(problems(other.first, torch.randn(1, 3, 8, 8))) == 1
    for both in (model, other):
        fastconv.restore(both)
        assert type(both.first) is ConvNorm
    assert snapshot(model) == before


def test_a_dry_run_and_a_failed_swap_join_nothing():
    model = nn.Sequential(conv(), norm(), nn.ReLU()).eval()
    before = snapshot(model)
    assert fastconv.swap(model, dry_run=True).sequences == ("",)
    with pytest.raises(RuntimeError):
        fastconv.swap(model, example_inputs=torch.zeros(1, 5, 8, 8))
    assert snapshot(model) == before
    assert fastconv.swap(model, lambda module, _: not isinstance(module, nn.Conv2d)).sequences == ()
    assert type(model) is nn.Sequential


def test_a_dry_run_leaves_what_is_joined():
    model = nn.Sequential(conv(), norm(), nn.ReLU(), nn.Sequential(conv(), nn.ReLU()))
    fastconv.swap(model)
    model.append(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    before = snapshot(model)
    assert fastconv.swap(model, dry_run=True).sequences == ("4",)
    assert snapshot(model) == before
    assert type(model[3]) is type(model)


def test_built_models_are_joined():
    def kinds(layers: str) -> set[str]:
        sequences = (m for m in create_model("squeezenet1_1", layers=layers).modules() if isinstance(m, nn.Sequential))
        return {type(module).__module__ for module in sequences}

    assert kinds("fastconv") == {"fastconv.nn.sequence"}
    assert kinds("torch") == {"torch.nn.modules.container"}
