"""swap and restore: what changes (the class), what does not (everything else), what is kept and why."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastconv
from fastconv.nn.layers import LAYERS


class OwnForward(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) + 1


class Renamed(nn.Conv2d):
    pass


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))


def snapshot(model: nn.Module) -> list:
    """The identity of every module, its class and everything in its __dict__."""
    return [
        (
            name,
            id(m),
            type(m),
            {key: id(value) for key, value in vars(m).items()},
            tuple(map(id, m._parameters.values())),
        )
        for name, m in model.named_modules(remove_duplicate=False)
    ]


def without_classes(rows: list) -> list:
    return [(name, identity, values, parameters) for name, identity, _, values, parameters in rows]


X = torch.randn(2, 3, 6, 5)


def test_swap_changes_classes_only_and_restore_undoes_it():
    model = network()
    before, y = snapshot(model.eval()), model(X)
    keys, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    report = fastconv.swap(model)
    assert [type(m) for m in model] == [fastconv.nn.Conv2d, nn.BatchNorm2d, nn.ReLU, fastconv.nn.Conv2d]
    assert without_classes(snapshot(model)) == without_classes(before)
    assert list(model.state_dict()) == keys
    assert list(map(id, model.parameters())) == parameters
    assert [row.name for row in report.swapped] == ["0", "3"]
    torch.testing.assert_close(model(X), y)
    assert fastconv.restore(model) == 2
    assert snapshot(model) == before
    assert torch.equal(model(X), y)


def test_every_class_of_the_table_is_swapped():
    model = nn.Sequential(
        *(cls(2, 2, 1) if "Conv" in cls.__name__ else cls(2) for cls in LAYERS),
    )
    report = fastconv.swap(model)
    assert [type(m) for m in model] == list(LAYERS.values())
    assert report.counts == {cls.__name__: 1 for cls in LAYERS}
    assert fastconv.restore(model) == len(LAYERS)
    assert [type(m) for m in model] == list(LAYERS)


def test_dry_run_touches_nothing():
    model = network()
    before = snapshot(model)
    report = fastconv.swap(model, dry_run=True)
    assert snapshot(model) == before
    assert "2 of 2 layers would run on fastconv" in str(report)
    report = fastconv.swap(model, dry_run=True, example_inputs=X)
    assert snapshot(model) == before
    assert report.rows[0].problem == "n2c3h6w5_k4r3s3_p1_f32nchw_bias"


def test_the_model_itself_can_be_a_layer():
    conv = nn.Conv2d(3, 4, 3)
    report = fastconv.swap(conv)
    assert type(conv) is fastconv.nn.Conv2d
    assert report.rows[0].name == ""
    assert "(the model)" in str(report)


def test_filter_sees_module_and_name_and_decides():
    model, asked = network(), []

    def only_pointwise(module, name):
        asked.append((module, name))
        return module.kernel_size == (1, 1)

    report = fastconv.swap(model, only_pointwise)
    assert asked == [(model[0], "0"), (model[3], "3")]
    assert [type(model[0]), type(model[3])] == [nn.Conv2d, fastconv.nn.Conv2d]
    assert [row.kept for row in report.rows] == ["filter_fn left it out.", None]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3,), "swap takes a torch.nn.Module, but got 3 of type int"),
        ((nn.Conv2d,), "swap takes a torch.nn.Module, but got"),
        ((nn.Conv2d(1, 1, 1), "conv"), "filter_fn must be a function of a module and its name, but is 'conv'"),
    ],
)
def test_bad_arguments_raise_type_errors(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        fastconv.swap(*arguments)


def test_restore_of_something_else_raises():
    with pytest.raises(TypeError, match=r"restore takes a torch.nn.Module, but got None of type NoneType"):
        fastconv.restore(None)


def test_a_raising_filter_or_example_leaves_the_model_alone():
    model = network().train()
    before = snapshot(model)

    def failing(module, name):
        if name == "3":
            raise KeyError(name)
        return True

    with pytest.raises(KeyError):
        fastconv.swap(model, failing)
    assert snapshot(model) == before
    with pytest.raises(RuntimeError):
        fastconv.swap(model, example_inputs=torch.ones(1, 5, 4, 4))
    assert snapshot(model) == before


def test_the_example_names_problem_and_kernel_and_leaves_no_trace():
    model = network().train()
    model.append(nn.Conv2d(9, 9, 1))
    model[3].eval()

    class Caller(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x, *, again):
            y = self.body[:4](x)
            return self.body[3](self.body[0](x[..., 1:])) if again else y

    caller, state = Caller(), copy.deepcopy(model.state_dict())
    before = snapshot(caller)
    report = fastconv.swap(caller, example_inputs={"x": X, "again": True})
    assert without_classes(snapshot(caller)) == without_classes(before)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model)
    first, second, third = report.rows
    assert first.problem == "n2c3h6w5_k4r3s3_p1_f32nchw_bias, n2c3h6w4_k4r3s3_p1_f32nchw_bias"
    assert first.kernel.startswith("conv2d/fprop_")
    assert second.problem == "n2c4h6w5_k2r1s1_f32nchw, n2c4h6w4_k2r1s1_f32nchw"
    assert (third.problem, third.kernel) == ("any", "not reached by the example")
    assert first.problem in str(report)


def script() -> nn.Module:
    return torch.jit.script(nn.Conv2d(3, 4, 1))


def instance_forward() -> nn.Module:
    layer = nn.Conv2d(3, 4, 1)
    layer.forward = lambda x: x
    return layer


def sparse() -> nn.Module:
    layer = nn.Conv2d(3, 4, 1)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


def subclassed_weight() -> nn.Module:
    class Marked(torch.Tensor):
        pass

    layer = nn.Conv2d(3, 4, 1)
    layer._parameters["weight"] = layer.weight.detach().as_subclass(Marked)
    return layer


KEPT = [
    (lambda: OwnForward(3, 4, 1), "OwnForward has its own forward."),
    (lambda: Renamed(3, 4, 1), "Renamed is a subclass of Conv2d; only torch's own classes are swapped."),
    (lambda: nn.LazyConv2d(4, 1), "LazyConv2d has no sizes before its first call; swap again after it."),
    (lambda: nn.Conv3d(3, 4, 1), "fastconv has no Conv3d; PyTorch's own operator runs."),
    (lambda: nn.MaxPool3d(2), "fastconv has no MaxPool3d; PyTorch's own operator runs."),
    (lambda: nn.FractionalMaxPool2d(2, 3), "fastconv has no FractionalMaxPool2d; PyTorch's own operator runs."),
    (lambda: fastconv.nn.Conv2d(3, 4, 1), "It is a fastconv layer already."),
    (lambda: nn.Conv2d(3, 4, 1, dtype=torch.complex64), "Its weight is torch.complex64; PyTorch's own operator runs."),
    (instance_forward, "Its forward was replaced on this module."),
    (sparse, "Its weight is torch.sparse_coo; PyTorch's own operator runs."),
    (subclassed_weight, "Its weight is a Marked, which brings operators of its own."),
    (script, "It is compiled by TorchScript, which fixes its operators."),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "reason"), KEPT, ids=lambda v: v if isinstance(v, str) else "")
def test_kept_and_reported(make, reason):
    model = nn.Sequential(make(), nn.Linear(2, 2))
    before = snapshot(model)
    report = fastconv.swap(model)
    assert snapshot(model) == before
    assert [(row.name, row.kept) for row in report.rows] == [("0", reason)]
    assert reason in str(report)


@pytest.mark.filterwarnings("ignore")
def test_quantized_layers_are_kept():
    model = torch.ao.nn.quantized.Conv2d(3, 4, 1)
    report = fastconv.swap(model)
    assert report.rows[0].kept == "fastconv has no quantized Conv2d; PyTorch's own operator runs."
    assert type(model) is torch.ao.nn.quantized.Conv2d


def test_a_lazy_layer_is_swapped_after_its_first_call():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    assert fastconv.swap(model).swapped == ()
    y = model(X)
    assert len(fastconv.swap(model).swapped) == 1
    torch.testing.assert_close(model(X), y)


def test_swapping_twice_reports_and_restores_the_same():
    model = network()
    before = snapshot(model)
    fastconv.swap(model)
    report = fastconv.swap(model)
    assert {row.kept for row in report.rows} == {"It is a fastconv layer already."}
    fastconv.restore(model)
    assert fastconv.restore(model) == 0
    assert snapshot(model) == before


def test_hooks_of_every_kind_stay_and_fire():
    conv, fired = nn.Conv2d(3, 4, 3), []
    conv.register_forward_pre_hook(lambda *_: fired.append("pre"))
    conv.register_forward_hook(lambda *_: fired.append("post"))
    conv.register_full_backward_pre_hook(lambda *_: fired.append("back pre"))
    conv.register_full_backward_hook(lambda *_: fired.append("back"))
    conv.register_state_dict_pre_hook(lambda *_: fired.append("save"))
    conv.register_load_state_dict_post_hook(lambda *_: fired.append("load"))
    before = snapshot(conv)
    fastconv.swap(conv, example_inputs=X)
    fired.clear()
    assert without_classes(snapshot(conv)) == without_classes(before)
    conv(X).sum().backward()
    conv.load_state_dict(conv.state_dict())
    assert fired == ["pre", "post", "back pre", "back", "save", "load"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "decorate",
    [
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_structured(layer, "weight", 0.5, dim=0),
    ],
    ids=["old_weight_norm", "old_spectral_norm", "weight_norm", "spectral_norm", "orthogonal", "pruned", "pruned_rows"],
)
def test_reparametrized_layers(decorate):
    x = X.double()  # gradients through a norm cancel too much for a float32 comparison
    model = nn.Sequential(decorate(nn.Conv2d(3, 4, 3, dtype=x.dtype)), nn.ReLU()).eval()
    model[0].register_forward_hook(lambda *_: None)
    y, before, keys = model(x), snapshot(model), list(model.state_dict())
    loss = y.square().sum()
    reference = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert len(fastconv.swap(model).swapped) == 1
    assert isinstance(model[0], fastconv.nn.Conv2d)
    assert list(model.state_dict()) == keys
    swapped = model(x)
    torch.testing.assert_close(swapped, y)
    gradients = torch.autograd.grad(swapped.square().sum(), list(model.parameters()))
    for mine, theirs in zip(gradients, reference, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert fastconv.restore(model) == 1
    assert [row[2] for row in snapshot(model)] == [row[2] for row in before]
    assert vars(model[0]).keys() == before[1][3].keys()
    assert torch.equal(model(x), y)


def test_parametrizations_removed_or_added_after_the_swap():
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    fastconv.swap(conv)
    parametrize.register_parametrization(conv, "bias", Doubled())
    y = conv(X)
    fastconv.restore(conv)
    assert not isinstance(conv, fastconv.nn.Conv2d)
    assert parametrize.is_parametrized(conv, "bias")
    torch.testing.assert_close(conv(X), y)
    fastconv.swap(conv)
    parametrize.remove_parametrizations(conv, "bias")
    parametrize.remove_parametrizations(conv, "weight")
    assert type(conv) is fastconv.nn.Conv2d
    torch.testing.assert_close(conv(X), y)
    parametrize.register_parametrization(conv, "weight", Doubled())
    fastconv.restore(conv)
    parametrize.remove_parametrizations(conv, "weight")
    assert type(conv) is nn.Conv2d


def test_copies_of_a_parametrized_layer_are_swapped_apart():
    conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    twin = copy.deepcopy(conv)
    cls = type(conv)
    fastconv.swap(conv)
    assert type(twin) is cls
    fastconv.swap(twin)
    later = copy.deepcopy(twin)
    for layer in (conv, twin, later):
        fastconv.restore(layer)
        assert type(layer) is cls


def test_tied_and_repeated_modules_stay_tied():
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv2d(4, 4, 1))
    model[3].weight = shared.weight
    report = fastconv.swap(model)
    assert [row.name for row in report.rows] == ["0", "3"]
    assert model[0] is model[2] is shared
    assert model[3].weight is shared.weight
    assert len(list(model.parameters())) == 3


def save_and_load(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "clone",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        save_and_load,
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_swapped_models_copy(clone):
    model = network().eval()
    y = model(X)
    classes = [type(m) for m in model.modules()]
    fastconv.swap(model)
    other = clone(model)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(other(X), model(X))
    fastconv.restore(other)
    assert [type(m) for m in other.modules()] == classes
    assert torch.equal(other(X), y)


def test_state_dicts_travel_between_swapped_and_plain_models():
    plain, swapped = network(), network()
    fastconv.swap(swapped)
    assert str(swapped.load_state_dict(plain.state_dict())) == "<All keys matched successfully>"
    assert str(plain.load_state_dict(swapped.state_dict())) == "<All keys matched successfully>"


def test_a_swapped_model_traces_and_compiles():
    model = network().eval()
    fastconv.swap(model)
    y = model(X)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [fastconv.functional.conv2d] * 2
    assert torch.equal(traced(X), y)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), y)
    exported = torch.export.export(model, (X,))
    assert torch.equal(exported.module()(X), y)


def test_many_cycles_leave_memory_flat():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.MaxPool2d(2))
    for _ in range(100):
        fastconv.swap(model)
        fastconv.restore(model)
    gc.collect()
    objects, resident = len(gc.get_objects()), _resident_bytes()
    for _ in range(10_000):
        fastconv.swap(model)
        fastconv.restore(model)
    gc.collect()
    assert len(gc.get_objects()) - objects < 100
    assert _resident_bytes() - resident < 8e6


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
