"""swap and restore: what changes (the class) and what does not (everything else)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastconv
from fastconv.nn.layers import LAYERS
from tests.nn.models import X, network, snapshot, without_classes


def test_swap_changes_classes_only_and_restore_undoes_it():
    model = network()
    before, y = snapshot(model.eval()), model(X)
    keys, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    report = fastconv.swap(model)
    assert [type(m) for m in model] == [fastconv.nn.Conv2d, fastconv.nn.BatchNorm2d, nn.ReLU, fastconv.nn.Conv2d]
    assert without_classes(snapshot(model)) == without_classes(before)
    assert list(model.state_dict()) == keys
    assert list(map(id, model.parameters())) == parameters
    assert [row.name for row in report.swapped] == ["0", "1", "3"]
    torch.testing.assert_close(model(X), y)
    assert fastconv.restore(model) == 3
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
    assert "3 of 3 layers would run on fastconv" in str(report)
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
        return getattr(module, "kernel_size", None) == (1, 1)

    report = fastconv.swap(model, only_pointwise)
    assert asked == [(model[0], "0"), (model[1], "1"), (model[3], "3")]
    assert [type(model[0]), type(model[3])] == [nn.Conv2d, fastconv.nn.Conv2d]
    assert [row.kept for row in report.rows] == ["filter_fn left it out.", "filter_fn left it out.", None]


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
    first, norm, second, third = report.rows
    assert first.problem == "n2c3h6w5_k4r3s3_p1_f32nchw_bias, n2c3h6w4_k4r3s3_p1_f32nchw_bias"
    assert first.kernel.startswith("conv2d/fprop_")
    assert norm.problem == "batchnorm2d_n2c4h6w5_f32nchw"
    assert norm.kernel.startswith("batchnorm2d/fprop_")
    assert second.problem == "n2c4h6w5_k2r1s1_f32nchw, n2c4h6w4_k2r1s1_f32nchw"
    assert (third.problem, third.kernel) == ("any", "not reached by the example")
    assert first.problem in str(report)


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


def test_tied_and_repeated_modules_stay_tied():
    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv2d(4, 4, 1))
    model[3].weight = shared.weight
    report = fastconv.swap(model)
    assert [row.name for row in report.rows] == ["0", "3"]
    assert model[0] is model[2] is shared
    assert model[3].weight is shared.weight
    assert len(list(model.parameters())) == 3
