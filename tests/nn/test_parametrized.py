"""Swapping layers whose weights are computed: norms, pruning, parametrizations that come and go."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastconv
from tests.nn.models import X, snapshot


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


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
