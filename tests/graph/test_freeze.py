"""Frozen models compute what the model did when it was frozen, in eager mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastconv
from fastconv.graph.freeze import Frozen
from tests.graph import networks


def frozen_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Frozen)]


@pytest.mark.parametrize("name", networks.PLANNED)
def test_a_frozen_model_computes_what_the_model_does(name):
    model, x = networks.make(name, torch.float32)
    frozen = fastconv.freeze(model)
    assert frozen_layers(frozen)
    with torch.no_grad():
        for given in (x, x.contiguous(memory_format=torch.channels_last), torch.cat([x, x, x])):
            torch.testing.assert_close(frozen(given), model(given), rtol=1e-4, atol=1e-5)


def test_later_changes_do_not_reach_the_copy():
    model, x = networks.make("residual", torch.float32)
    frozen = fastconv.freeze(model)
    with torch.no_grad():
        before = frozen(x)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(frozen(x), before)


def test_the_model_is_not_changed():
    model, _ = networks.make("residual", torch.float32)
    before = {name: id(module) for name, module in model.named_modules()}
    fastconv.freeze(model)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_a_filter_chooses_and_a_shared_layer_stays_shared():
    layer = nn.Conv2d(3, 3, 3, padding="same")
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Conv2d(3, 2, 1)).eval()
    frozen = fastconv.freeze(model, lambda module, name: name != "3")
    assert frozen_layers(frozen) == ["0"] and frozen[2] is frozen[0] and type(frozen[3]) is nn.Conv2d
    x = torch.randn(2, 3, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_frozen_stays():
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    circular = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(circular, normed, nn.Conv2d(3, 3, 1), nn.Conv1d(3, 3, 1)).eval()
    model[2].register_forward_hook(lambda *_: None)
    assert not frozen_layers(fastconv.freeze(model))


def test_what_a_frozen_layer_does_not_take_gets_a_sentence():
    layer = fastconv.freeze(nn.Conv2d(3, 4, 3).eval())
    x = torch.randn(1, 3, 6, 6)
    for wrong, error, words in [
        (x.double(), ValueError, "takes torch.float32"),
        (x[0], ValueError, "of 4 axes"),
        (x.clone().requires_grad_(), RuntimeError, "has no gradient"),
    ]:
        with pytest.raises(error, match=words):
            layer(wrong)
    with pytest.raises(RuntimeError, match="original model"):
        layer.train()
    with pytest.raises(RuntimeError, match="original model"):
        layer.double()
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        fastconv.freeze(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
