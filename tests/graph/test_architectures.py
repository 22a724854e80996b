"""Networks people use go through optimize and torch.compile, and the report names what stays PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils import _pytree as pytree

from fastconv.graph import optimize
from tests import third_party

ERROR = 1e-5  # relative L2, from float64

# By package: each name with the side of its image. Sides are small where the network allows it.
TORCHVISION = {
    "alexnet": 96, "vgg11": 64, "vgg13_bn": 64, "vgg16": 64, "resnet18": 64, "resnet34": 64, "resnet50": 64,
    "resnext50_32x4d": 64, "wide_resnet50_2": 64, "googlenet": 96, "inception_v3": 128, "densenet121": 64,
    "squeezenet1_0": 64, "squeezenet1_1": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mobilenet_v3_large": 64,
    "shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_0": 64, "mnasnet0_5": 64, "efficientnet_b0": 64,
    "efficientnet_v2_s": 64, "regnet_y_400mf": 64, "regnet_x_400mf": 64, "convnext_tiny": 64, "vit_b_32": 224,
    "swin_t": 64, "maxvit_t": 224, "fcn_resnet50": 64, "deeplabv3_mobilenet_v3_large": 64,
    "lraspp_mobilenet_v3_large": 64,
}  # fmt: skip
TIMM = {
    "resnet26d": 64, "seresnet18": 64, "ese_vovnet19b_dw": 64, "ghostnet_050": 64, "hrnet_w18_small": 64,
    "mixnet_s": 64, "repvgg_a0": 64, "tf_efficientnet_lite0": 64, "darknet17": 64, "cspresnet50": 64,
    "mobilevit_xxs": 64, "convmixer_768_32": 56, "pvt_v2_b0": 64, "edgenext_xx_small": 64, "poolformer_s12": 64,
}  # fmt: skip
QUICK = ("resnet18", "googlenet", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5", "fcn_resnet50",
         "timm:mobilevit_xxs", "timm:seresnet18")  # fmt: skip
# What is more than one plan; all others are one.
IN_PARTS = ("swin_t", "maxvit_t", "timm:ghostnet_050", "timm:edgenext_xx_small", "timm:poolformer_s12")
NAMES = {**TORCHVISION, **{f"timm:{name}": side for name, side in TIMM.items()}}


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    package, _, last = name.rpartition(":")
    if package:
        model = third_party.timm().create_model(last)
    else:
        models = third_party.torchvision().models
        options = (
            {"weights": None, "init_weights": True} if last in ("googlenet", "inception_v3") else {"weights": None}
        )
        if last.startswith(("fcn", "deeplab", "lraspp")):
            options["weights_backbone"] = None
        model = models.get_model(last, **options)
    return model.eval(), torch.randn(2, 3, NAMES[name], NAMES[name])


def assert_equal(results: object, exact: object) -> None:
    for y, e in zip(pytree.tree_leaves(results), pytree.tree_leaves(exact), strict=True):
        assert y.shape == e.shape
        assert (y.double() - e).norm() <= ERROR * e.norm()


def cases() -> list:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in NAMES]


@pytest.mark.parametrize("name", cases())
def test_optimize(name):
    model, x = build(name)
    plan = optimize(model, x)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert_equal(plan(x), exact)
        assert_equal(plan(x[:1]), copy.deepcopy(model).double()(x[:1].double()))
    report = plan.report
    assert report.planned and (len(plan.parts) == 1) == (name not in IN_PARTS)
    assert all(name in str(report) for name in report.left)


@pytest.mark.parametrize("name", cases())
def test_compile(name):
    model, x = build(name)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="fastconv")
    with torch.no_grad():
        assert_equal(compiled(x), copy.deepcopy(model).double()(x.double()))


def test_there_are_forty():
    assert len(NAMES) >= 40
