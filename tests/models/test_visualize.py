"""Projections to pixels: equal to the gradient where the net is linear, through switches, rectified on the way back."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image
from torch import nn

from fastconv import cli
from fastconv import nn as layers
from fastconv.models import create_model
from fastconv.models.visualize import project, to_picture
from fastconv.models.zfnet import ZFNet
from fastconv.training import Job, Trainer, recipe_for


def image(*shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [layers, nn], ids=["fastconv", "torch"])
def test_of_a_linear_net_it_is_the_gradient_times_the_activation(kind):
    """Overlapping pools whose windows leave the map, strides that do not fit it, groups and dilation among them."""
    net = nn.Sequential(
        kind.Conv2d(2, 4, 3, stride=2, padding=1),
        kind.MaxPool2d(3, stride=2, ceil_mode=True),
        kind.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        kind.BatchNorm2d(6),
    ).eval()
    with torch.no_grad():
        net[3].running_var.uniform_(0.5, 2)
        net[3].weight.uniform_(0.5, 2)
    x = image(2, 24, 19).requires_grad_()
    for channel in (None, 0, 5):
        found = project(net, x.detach(), "3", channel)
        value = net(x)[0, found.channel][found.place]
        assert found.value == pytest.approx(value.item(), rel=1e-5)
        assert found.value == pytest.approx((net(x)[0] if channel is None else net(x)[0, channel]).max().item())
        (gradient,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(found.pixels, found.value * gradient[0], rtol=1e-5, atol=1e-5)


def test_the_switches_put_values_where_the_pool_found_them():
    x = torch.tensor([[1.0, 2, 0, 0], [0, 0, 0, 7], [0, 0, 5, 0], [0, 0, 0, 0]])
    found = project(nn.Sequential(nn.MaxPool2d(2)), x.view(1, 1, 4, 4), "0")
    expected = torch.zeros(4, 4)
    expected[1, 3] = 7
    assert torch.equal(found.pixels[0], expected)
    assert (found.place, found.value, found.channel) == ((0, 1), 7, 0)


def test_what_comes_back_is_rectified_by_itself():
    """A ReLU lets only positive values back, wherever it had let values forward."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([3.0, 1.0]).view(2, 1, 1, 1))
        net[2].weight.copy_(torch.tensor([1.0, -1.0]).view(1, 2, 1, 1))
    found = project(net, torch.ones(1, 1, 1, 1), "2")  # forward 3 - 1 = 2; back 2 and -2, of which 2 is left
    assert (found.value, float(found.pixels)) == (2, 6)
    assert project(net, torch.ones(1, 1, 1, 1), "0").value == 3  # not what the ReLU in place made of it


def test_zfnet_and_its_receptive_field():
    torch.manual_seed(0)
    model, x = ZFNet(layers, widths=(8, 8, 8), hidden=8), image(3, 96, 96)
    before = x.clone()
    found = project(model, x, "features.6")
    assert found.pixels.shape == (3, 96, 96) and found.pixels.abs().max() > 0
    seen = found.pixels.abs().sum(0).nonzero()
    assert int((seen.amax(0) - seen.amin(0)).max()) < 51  # the field of the second pool
    assert model.training and torch.equal(x, before)


def test_a_projection_as_a_picture():
    pixels = torch.tensor([-2.0, 0.0, 1.0, 2.0]).view(1, 1, 4)
    assert list(to_picture(pixels).tobytes()) == [0, 128, 191, 255]
    assert to_picture(torch.zeros(3, 2, 2)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("name", "layer", "channel", "sentence"),
    [
        ("lenet5_relu", "features.9", None, "no layer 'features.9'. Did you mean features.5"),
        ("lenet5_relu", "features.0", 99, "has maps 0 to 5, but channel is 99"),
        ("resnet20_cifar", "layer1.1.conv1", None, "because the function add lies between it and the image"),
    ],
)
def test_what_cannot_be_projected_is_told(name, layer, channel, sentence):
    model = create_model(name)
    x = image(1, 32, 32) if name.startswith("lenet") else image(3, 32, 32)
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        project(model, x, layer, channel)
    assert "\n" not in str(raised.value)


def test_the_command_saves_a_picture(capsys, tmp_path):
    trainer = Trainer(Job("lenet5_relu", "digits", recipe_for("lenet5_relu")))
    trainer.save_weights(tmp_path / "lenet.safetensors")
    Image.new("L", (28, 28), 200).save(tmp_path / "digit.png")
    words = ["study", "feature", "lenet5_relu", str(tmp_path / "digit.png"), "--out", str(tmp_path / "out.png")]
    words += ["--checkpoint", str(tmp_path / "lenet.safetensors"), "--layer"]
    assert cli.main([*words, "features.3"]) == 0
    assert "of features.3 is" in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").size == (32, 32)
    assert cli.main([*words, "features.9"]) == cli.USAGE
    err = capsys.readouterr().err
    assert "no layer 'features.9'. Did you mean" in err and err.count("\n") == 1
