"""Captured problems are what torch was asked to do, and the corpora are what their models ask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastconv.functional
from fastconv.models import create_model
from fastconv.problem import Problem
from fastconv.testing import capture, corpus
from tests.third_party import torchvision

MODELS = ("resnet50", "resnet18", "mobilenet_v2", "vgg16", "efficientnet_lite0")
PUBLISHED = ("alexnet", "googlenet", "densenet121", "efficientnet_b0", "resnext50_32x4d")


def problems(model, *inputs, **options):
    return [str(call.problem) for call in capture.capture(model, *inputs, **options)]


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


CASES = {
    "n2c4h9w11_k6r3s2_u2x1_p1x0_d1x2_g2_f32nhwc_bias": nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2),
    "n2c4h9w11_k6r3s4_p1x1:2_f32nhwc": nn.Conv2d(4, 6, (3, 4), padding="same", bias=False),
    "n2c5h18w22_k4r2s2_u2_f32nhwc_dgrad_bias": nn.ConvTranspose2d(4, 5, 2, 2),
    "n2c6h18w33_k4r3s5_u2x3_p1x2_g2_f32nhwc_dgrad": nn.ConvTranspose2d(
        4, 6, (3, 5), (2, 3), (1, 2), (1, 2), 2, bias=False
    ),
    "maxpool2d_n2c4h9w11_r3s2_u2_p1_f32nhwc_ceil": nn.MaxPool2d((3, 2), 2, 1, ceil_mode=True),
    "maxpool2d_n2c4h9w11_r2s2_u2_f32nhwc_indexi64": nn.MaxPool2d(2, return_indices=True),
    "avgpool2d_n2c4h9w11_r3s3_u3_p1_f32nhwc_nopad": nn.AvgPool2d(3, padding=1, count_include_pad=False),
    "avgpool2d_n2c4h9w11_r3s3_u2_f32nhwc_div5": nn.AvgPool2d(3, 2, divisor_override=5),
    "adaptiveavg2d_n2c4h9w11_o1x1_f32nhwc": nn.AdaptiveAvgPool2d(1),
    "adaptivemax2d_n2c4h9w11_o3x11_f32nhwc": nn.AdaptiveMaxPool2d((3, None)),
}


@pytest.mark.parametrize("text", CASES)
def test_one_layer(text):
    """The problem has the layer's numbers, and the output size torch computed."""
    module = CASES[text]
    seen = problems(module, x(2, 4, 9, 11))
    assert seen == [str(Problem(text))]
    y = module(x(2, 4, 9, 11))
    y = y[0] if isinstance(y, tuple) else y
    problem = Problem(seen[0])
    sides = (problem.h.size, problem.w.size) if problem.pass_ == "dgrad" else (problem.h.out, problem.w.out)
    assert tuple(y.shape[2:]) == sides


def test_layer_names_and_modes():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Dropout(), nn.MaxPool2d(2)))
    model[1].eval()
    calls = capture.capture(model, x(1, 3, 4, 6))
    assert [call.layer for call in calls] == ["0", "1.1"]
    assert model.training
    assert not model[1].training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_functional_and_unbatched_calls_count():
    class Model(nn.Module):
        def forward(self, t):
            return torch.conv2d(torch.nn.functional.avg_pool2d(t, 2), torch.ones(2, 3, 1, 1))

    assert problems(Model(), x(3, 4, 6)) == ["avgpool2d_n1c3h4w6_r2s2_u2_f32nhwc", "n1c3h2w3_k2r1s1_f32nhwc"]


def test_calls_into_fastconv_count_once():
    class Model(nn.Module):
        def forward(self, t):
            return fastconv.functional.conv2d(t, torch.ones(2, 3, 1, 1))

    assert problems(Model(), x(1, 3, 4, 6)) == ["n1c3h4w6_k2r1s1_f32nhwc"]


def test_training_adds_the_gradients_that_are_needed():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 4, 1))
    assert problems(model, x(1, 3, 4, 6), train=True) == [
        "n1c3h4w6_k4r1s1_f32nhwc_bias",
        "n1c3h4w6_k4r1s1_f32nhwc_wgrad",  # the image needs no gradient
        "maxpool2d_n1c4h4w6_r2s2_u2_f32nhwc_indexu8",  # keeps the places of its maxima
        "maxpool2d_n1c4h4w6_r2s2_u2_f32nhwc_dgrad_indexu8",
        "n1c4h2w3_k4r1s1_f32nhwc_dgrad_bias",
        "n1c4h2w3_k4r1s1_f32nhwc",
        "n1c4h2w3_k4r1s1_f32nhwc_wgrad",
    ]


def test_layouts():
    model, image = nn.Conv2d(3, 4, 1, bias=False), x(1, 3, 4, 6)
    assert problems(model, image, layout="nchw") == ["n1c3h4w6_k4r1s1_f32nchw"]
    assert problems(model, image, layout=None) == ["n1c3h4w6_k4r1s1_f32nchw"]
    image = image.contiguous(memory_format=torch.channels_last)
    assert problems(model, image, layout=None) == ["n1c3h4w6_k4r1s1_f32nhwc"]
    assert problems(model.double(), image.double()) == ["n1c3h4w6_k4r1s1_f64nhwc"]


def image_problems(model):
    with torch.device("meta"):
        return capture.count(capture.capture(model, torch.empty(1, 3, 224, 224)))


@pytest.mark.parametrize("name", MODELS)
def test_a_corpus_is_what_its_model_asks(name):
    with torch.device("meta"):
        own = create_model(name, layers="torch")
    assert image_problems(own) == corpus.load(name)
    if name != "efficientnet_lite0":  # not a model of torchvision's
        with torch.device("meta"):
            published = getattr(torchvision().models, name)()
        assert image_problems(published) == corpus.load(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_corpus_is_what_the_published_model_asks(name):
    options = {"init_weights": False} if name == "googlenet" else {}  # to say so spares a warning
    with torch.device("meta"):
        model = getattr(torchvision().models, name)(**options)
    assert image_problems(model) == corpus.load(name)


@pytest.mark.parametrize("name", corpus.names())
def test_a_corpus_survives_dump_and_load(name, tmp_path):
    path = tmp_path / "copy.txt"
    path.write_text(corpus.dump(corpus.load(name)))
    assert corpus.load(str(path)) == corpus.load(name)
