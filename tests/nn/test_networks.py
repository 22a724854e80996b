"""swap and restore on torchvision's and timm's networks: same keys, same parameters, same numbers, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fastconv
from tests import third_party

SIZE = 64
# Ours may lose this many times as much to rounding as torch's own float32 pass does.
ROUNDING = 4
# Below this relative error two passes agree to the last bits and a ratio says nothing.
FLOOR = 2.0**-21


def vision(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: getattr(third_party.torchvision().models, name)(weights=None, **options)


def timm(name: str, **options) -> Callable[[], nn.Module]:
    return lambda: third_party.timm().create_model(name, pretrained=False, **options)


NETWORKS = {
    "resnet18": vision("resnet18"),
    "timm_resnest": timm("resnest14d"),
    "mobilenet_v2": vision("mobilenet_v2"),
    "mobilenet_v3_small": vision("mobilenet_v3_small"),
    "shufflenet_v2": vision("shufflenet_v2_x0_5"),
    "squeezenet": vision("squeezenet1_1"),
    "mnasnet": vision("mnasnet0_5"),
    "efficientnet_b0": vision("efficientnet_b0"),
    "timm_regnet": timm("regnety_002"),
    "densenet121": vision("densenet121"),
    "googlenet": vision("googlenet", init_weights=False, aux_logits=False),
    "alexnet": vision("alexnet", num_classes=10),
    "timm_mobileone": timm("mobileone_s0"),
    "timm_resnet10t": timm("resnet10t"),
    "timm_mobilenetv4": timm("mobilenetv4_conv_small_050"),
    "timm_efficientnet_lite": timm("tf_efficientnet_lite0"),
    "timm_convnext": timm("convnext_atto"),
    "timm_repvgg": timm("repvgg_a0"),
    "timm_ghostnet": timm("ghostnet_050"),
    "timm_tinynet": timm("tinynet_e"),
    "timm_nfnet": timm("nf_regnet_b0"),
    "timm_edgenext": timm("edgenext_xx_small"),
    "timm_dla": timm("dla46x_c"),
    "timm_hardcorenas": timm("hardcorenas_a"),
    "timm_vit": timm("vit_tiny_patch16_224", img_size=SIZE),
    "timm_rexnet": timm("rexnet_100"),
}


def distance(y: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2."""
    return float((y.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    x = torch.randn(1, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    classes = [type(m) for m in model.modules()]
    keys, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    contents = [{key: id(value) for key, value in vars(m).items()} for m in model.modules()]
    with torch.no_grad():
        y = model(x)
        exact = copy.deepcopy(model).double()(x.double())
        report = fastconv.swap(model)
        assert report.swapped
        swapped = model(x)
        assert list(model.state_dict()) == keys
        assert list(map(id, model.parameters())) == parameters
        assert distance(swapped, exact) <= ROUNDING * distance(y, exact) + FLOOR
        assert fastconv.restore(model) == len(report.swapped)
        assert [type(m) for m in model.modules()] == classes
        assert [{key: id(value) for key, value in vars(m).items()} for m in model.modules()] == contents
        assert torch.equal(model(x), y)


def test_same_padding_of_timm_is_kept():
    """Its class computes a padding of its own; swapping it would change results."""
    report = fastconv.swap(NETWORKS["timm_efficientnet_lite"]())
    assert {row.kept for row in report.kept if row.kind == "Conv2dSame"} == {"Conv2dSame has its own forward."}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_training_gradients(name):
    """In float64, so that batch statistics do not blow rounding up."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double().train()
    model.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    other = copy.deepcopy(model)
    fastconv.swap(other)
    for network in (model, other):
        network(x).square().sum().backward()
    for (key, theirs), mine in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
