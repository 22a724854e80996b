"""A classifier made fully convolutional says for every window what the classifier says."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

import fastconv
from fastconv.models import create_model, to_fully_convolutional
from fastconv.models.fcn import FCN, Variant, bilinear_upsampling
from fastconv.models.vgg import VGG
from fastconv.models.vgg import Variant as VGGVariant
from tests.models.references import reference, relative_error
from tests.models.thin import CLASSES, THIN

EXACT = 1e-12  # of float64

CLASSIFIERS = [name for name, thin in THIN.items() if not thin.dense and name != "lenet5"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_outputs_equal_at_the_classifiers_size_and_grow_with_the_image(name: str):
    thin = THIN[name]
    model = thin.model().double().eval()
    images = thin.images(count=2).double()
    # Made for the size at which an AlexNet's average is the identity; smaller maps are averaged up.
    native = {"alexnet": 224, "alexnet_2012": 227, "zfnet": 224, "vgg": 224, "vgg_bn": 224}.get(name)
    if native is not None:
        images = thin.images(native, count=1).double()
    converted = to_fully_convolutional(model, images)
    with torch.no_grad():
        expected = model(images)
        scores = converted(images)
        assert scores.shape == (*expected.shape, 1, 1)
        assert relative_error(scores.flatten(1), expected) <= EXACT
        larger = torch.randn(1, thin.channels, images.shape[2] + 64, images.shape[3] + 32, dtype=torch.float64)
        rows, columns = converted(larger).shape[2:]
    assert rows > columns > 1
    assert not [module for module in converted.modules() if isinstance(module, nn.Linear)]


def test_every_window_gets_the_classifiers_scores():
    """Without padding inside, a map of scores is the classifier on every window of the image."""
    for name, step in (("lenet5_relu", 4), ("lenet5_softmax", 4), ("mlp", 1)):
        for size in THIN[name].sizes:
            model = THIN[name].model(size=size).double().eval()
            converted = to_fully_convolutional(model, torch.zeros(1, 1, size, size, dtype=torch.float64))
            image = torch.randn(1, 1, size + 2 * step, size + step, dtype=torch.float64)
            with torch.no_grad():
                scores = converted(image)
                assert scores.shape == (1, CLASSES, 3, 2)
                for row, column in product(range(3), range(2)):
                    top, left = row * step, column * step
                    expected = model(image[:, :, top : top + size, left : left + size])
                    assert relative_error(scores[:, :, row, column], expected) <= EXACT


def test_an_average_over_the_map_slides_over_windows_of_its_size():
    """The last map of a larger image, window by window, through the pool and the linear layer as they were."""
    thin = THIN["densenet_cifar"]
    model = thin.model().double().eval()
    converted = to_fully_convolutional(model, thin.images(16, count=1).double())
    image = thin.images(32, count=1).double()
    with torch.no_grad():
        scores = converted(image)
        features = model.relu(model.features(image))
        side = 16 // 4  # the size of the map the classifier was made for
        assert scores.shape == (1, CLASSES, features.shape[2] - side + 1, features.shape[3] - side + 1)
        for row in range(scores.shape[2]):
            for column in range(scores.shape[3]):
                window = features[:, :, row : row + side, column : column + side]
                expected = model.classifier(window.mean((2, 3)))
                assert relative_error(scores[:, :, row, column], expected) <= EXACT


def test_parameters_are_the_models_own():
    model = THIN["vgg"].model()
    converted = to_fully_convolutional(model, torch.zeros(1, 3, 224, 224))
    own, theirs = model.state_dict(), converted.state_dict()
    assert own.keys() == theirs.keys()
    assert all(own[key].data_ptr() == theirs[key].data_ptr() for key in own)
    assert converted.training
    assert model.training
    first = converted.get_submodule("classifier.0")
    assert isinstance(first, fastconv.nn.Conv2d)
    assert first.weight.shape == (16, 8, 7, 7)
    stock = to_fully_convolutional(model, torch.zeros(1, 3, 224, 224), layers="torch")
    assert type(stock.get_submodule("classifier.0")) is nn.Conv2d


def test_a_converted_network_learns():
    converted = to_fully_convolutional(THIN["resnet"].model(), torch.zeros(1, 3, 32, 32)).train()
    converted(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert converted.fc.weight.grad.shape == (CLASSES, 512, 1, 1)
    assert converted.fc.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_published_networks_convert(name: str):
    torch.manual_seed(0)
    model = reference(name, num_classes=CLASSES).double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(to_fully_convolutional(model, images)(images).flatten(1), model(images)) <= EXACT


def test_what_has_no_convolutional_form_gets_a_sentence():
    with pytest.raises(ValueError, match=r"The classifier has unsqueeze .* which has no convolutional form"):
        to_fully_convolutional(create_model("lenet5"), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"avgpool makes \(6, 6\) pixels of \(1, 1\)"):
        to_fully_convolutional(THIN["alexnet"].model(), torch.zeros(1, 3, 63, 63))
    with pytest.raises(ValueError, match="layers='jax' must be 'fastconv' or 'torch'"):
        to_fully_convolutional(THIN["mlp"].model(), torch.zeros(1, 1, 28, 28), layers="jax")


@pytest.mark.parametrize("stride", [2, 8, 32])
def test_upsampling_starts_as_bilinear_interpolation(stride: int):
    """In the inside it is torch's own; a window begins half a stride outside the image."""
    layer = bilinear_upsampling(nn, 3, stride).double()
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    half = stride // 2
    ours = layer(x)[:, :, half:-half, half:-half]
    theirs = nn.functional.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    inside = (slice(None), slice(None), slice(stride, -stride), slice(stride, -stride))
    assert torch.allclose(ours[inside], theirs[inside], rtol=1e-12)


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_scores_lie_where_the_image_has_them(name: str):
    """Of a mark that lies evenly between the windows of all pools, the scores are even, and the crops keep them so."""
    model = THIN[name].model().double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            nn.init.zeros_(module.bias)
    window = model.classifier[0].weight.data  # of 7x7 pixels, which would reach over the image's edges
    window.copy_(window * torch.nn.functional.pad(torch.ones(1, 1), (3, 3, 3, 3)))
    # Windows of pool 5 begin at 32 i - 99 in the image: paddings of 100 - 1 pixels stand before it.
    between, size = 32 * 8 - 99, 320
    with torch.no_grad():
        image = torch.zeros(1, 3, size, size, dtype=torch.float64)
        image[:, :, between - 16 : between + 16, between - 16 : between + 16] = 1
        rows = model(image)[0, 0].sum(1)
    reach = torch.arange(1, between)
    assert rows.max() > 0
    assert torch.allclose(rows[between - reach], rows[between - 1 + reach], rtol=1e-9)


def test_fcn_takes_the_weights_of_a_converted_vgg():
    backbone = VGGVariant((1, 1, 1, 1, 1), False, 0, 0, widths=(4, 4, 8, 8, 8))
    vgg = VGG(nn, backbone, num_classes=CLASSES, hidden=16)
    state = to_fully_convolutional(vgg, torch.zeros(1, 3, 224, 224)).state_dict()
    fcn = FCN(nn, Variant(8, 31, 0, 0), num_classes=CLASSES, hidden=16, backbone=backbone)
    left = fcn.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert all(key.startswith(("score_pool", "upsample")) for key in left.missing_keys)
    assert torch.equal(fcn.classifier[3].weight.flatten(1), vgg.classifier[3].weight)


def test_the_last_upsampling_is_fixed():
    model = THIN["fcn8s"].model()
    assert [key for key, value in model.named_parameters() if not value.requires_grad] == ["upsample.weight"]


def test_deconvnet_puts_values_back_where_the_pools_found_them():
    """Every value returns to the pixel its pool took it from, and all others are zero."""
    model = THIN["deconvnet"].model().eval()
    images = THIN["deconvnet"].images(count=1)
    places = []
    for unpool in model.unpools:
        unpool.register_forward_hook(lambda _, args, output: places.append((args, output)))
    with torch.no_grad():
        model(images)
    assert len(places) == 5
    for (values, indices), output in places:
        found = output.flatten(2).gather(2, indices.flatten(2)).view_as(values)
        assert torch.equal(found, values)
        assert output.count_nonzero() == values.count_nonzero()
