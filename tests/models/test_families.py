"""What single families are known for, against their papers and against arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastconv.models import create_model, model_info
from fastconv.models.alexnet import RESPONSE
from fastconv.models.lenet import PartialConv, RadialBasis, ScaledTanh, Subsampling
from fastconv.models.resnet import ZeroPad
from tests.models.thin import THIN

# Layer by layer, from section II.B of the paper.
LENET_PARAMETERS = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
LENET_CONNECTIONS = 340_908

# Table I of the paper, row by row: the C3 maps each S2 map goes to.
LENET_ROWS = (
    (0, 4, 5, 6, 9, 10, 11, 12, 14, 15),
    (0, 1, 5, 6, 7, 10, 11, 12, 13, 15),
    (0, 1, 2, 6, 7, 8, 11, 13, 14, 15),
    (1, 2, 3, 6, 7, 8, 9, 12, 14, 15),
    (2, 3, 4, 7, 8, 9, 10, 12, 13, 15),
    (3, 4, 5, 8, 9, 10, 11, 13, 14, 15),
)

# Parameters in millions as the papers give them, rounded there.
STATED = {
    "densenet100_cifar": (0.8, 1),  # table 2
    "densenet40_cifar": (1.0, 1),
    "mobilenet_v1": (4.2, 1),  # table 8
    "mobilenet_v1_050": (1.3, 1),
    "resnet110_cifar": (1.7, 1),  # table 6
    "resnet20_cifar": (0.27, 2),
    "resnet32_cifar": (0.46, 2),
    "resnet44_cifar": (0.66, 2),
    "resnet56_cifar": (0.85, 2),
}


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize("name", STATED)
def test_parameters_are_the_papers(name: str):
    millions, digits = STATED[name]
    assert round(model_info(name).parameters / 1e6, digits) == millions


def test_lenet_has_the_papers_parameters_and_connections():
    model = create_model("lenet5")
    assert {name: count(getattr(model, name)) for name in LENET_PARAMETERS} == LENET_PARAMETERS
    assert model_info("lenet5").parameters == sum(LENET_PARAMETERS.values()) == 60_000
    # A connection is a product or the addition of a bias; a unit of S2 and S4 has four inputs and a bias.
    biases = 6 * 28**2 + 16 * 10**2 + 120 + 84
    subsampling = (6 * 14**2 + 16 * 5**2) * (4 + 1)
    rbf = 10 * 84
    assert model_info("lenet5").multiply_adds + biases + subsampling + rbf == LENET_CONNECTIONS


def test_larger_images_give_lenet_larger_maps_of_c5_and_f6_more_inputs():
    """Section II.B: with everything else kept constant, C5's maps would be larger than 1x1; F6 sees all of them."""
    model = create_model("lenet5", image_size=48)
    assert {name: count(getattr(model, name)) for name in LENET_PARAMETERS if name != "f6"} == {
        name: parameters for name, parameters in LENET_PARAMETERS.items() if name != "f6"
    }
    assert model.f6.in_features == 120 * 5**2
    assert model.output.centers.shape == (10, 84)


def test_lenet_maps_see_what_the_table_says():
    """One input map at a time: exactly the outputs of its row change."""
    torch.manual_seed(0)
    layer = PartialConv(nn)
    silent = layer(torch.zeros(1, 6, 5, 5))
    for row, seen in enumerate(LENET_ROWS):
        x = torch.zeros(1, 6, 5, 5)
        x[:, row] = torch.randn(5, 5)
        changed = (layer(x) != silent).flatten().nonzero().flatten()
        assert tuple(changed.tolist()) == seen


def test_lenet_subsampling_is_a_scaled_sum():
    layer = Subsampling(nn, 1)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.constant_(layer.bias, 1.0)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert layer(x).item() == 0.5 * 10 + 1


def test_lenet_squashing_passes_one_through():
    assert ScaledTanh()(torch.tensor([1.0, -1.0, 0.0])).tolist() == pytest.approx([1, -1, 0], abs=1e-4)


def test_lenet_outputs_are_distances_to_distinct_pictures():
    head = RadialBasis(10)
    assert head.centers.shape == (10, 84)
    assert set(head.centers.unique().tolist()) == {-1.0, 1.0}
    output = head(head.centers)
    assert torch.equal(output.argmax(1), torch.arange(10))
    assert torch.equal(output, -torch.cdist(head.centers, head.centers).square().round())
    assert output.fill_diagonal_(-1e3).max() <= -4 * 5  # pictures differ in five pixels at least
    assert not list(head.parameters())


def test_lenet_refuses_heads_it_has_no_pictures_for():
    with pytest.raises(ValueError, match="has 10 pictures, but num_classes is 11; head='softmax' takes any"):
        create_model("lenet5", num_classes=11)
    with pytest.raises(ValueError, match="head='svm' must be 'rbf' or 'softmax'"):
        create_model("lenet5", head="svm")
    assert create_model("lenet5", head="softmax", num_classes=11).output.out_features == 11


def test_alexnet_normalises_by_the_papers_sum():
    """b = a / (2 + 1e-4 * sum of the squares of 5 neighbours)^0.75, section 3.3."""
    a = torch.randn(1, 7, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    sums = torch.stack([a[:, max(0, i - 2) : i + 3].square().sum(1) for i in range(7)], dim=1)
    expected = a / (2 + 1e-4 * sums) ** 0.75
    assert torch.allclose(nn.LocalResponseNorm(**RESPONSE)(a), expected, rtol=1e-12)


def test_alexnets_two_halves_meet_in_the_third_layer_only():
    """Layers 2, 4 and 5 see one GPU's half; layer 3 and the classifier see both."""
    groups = [layer.groups for layer in create_model("alexnet_2012", hidden=8).features if isinstance(layer, nn.Conv2d)]
    assert groups == [1, 2, 1, 2, 2]


def test_naive_inception_passes_its_pool_on():
    """Without reductions the channels grow from module to module, as figure 2a has it, and the cost with them."""
    with torch.device("meta"):
        naive, reduced = create_model("googlenet", naive=True), create_model("googlenet")
        x = torch.empty(1, 3, 224, 224)
        assert naive.eval()(x).shape == (1, 1000)
    channels = 192
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        small, large = getattr(reduced, f"inception{name}"), getattr(naive, f"inception{name}")
        grown = small.out_channels - small.branch4[1].conv.out_channels
        channels += grown
        assert large.out_channels == channels
        assert count(large.branch2) == grown_parameters(large.branch2, channels - grown)
    assert naive.fc.in_features == channels


def grown_parameters(block: nn.Module, inputs: int) -> int:
    """Of a 3x3 convolution without bias and its batch norm."""
    outputs = block.conv.out_channels
    return inputs * outputs * 9 + 2 * outputs


def test_googlenet_classifies_three_times_in_training_only():
    thin = THIN["googlenet"]
    model, images = thin.model(), thin.images(count=2)
    outputs = model(images)
    assert [tuple(part.shape) for part in outputs] == [(2, 5)] * 3
    assert outputs._fields == ("logits", "aux_logits2", "aux_logits1")
    assert torch.is_tensor(model.eval()(images))
    torch.manual_seed(0)
    without = create_model("googlenet", num_classes=5, aux_logits=False)
    assert torch.is_tensor(without(images))
    assert not [key for key in without.state_dict() if key.startswith("aux")]


def test_zero_padding_shortcut_takes_every_second_pixel():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = ZeroPad(2, 3, 2)(x)
    assert torch.equal(y, torch.cat([x[:, :, ::2, ::2], torch.zeros(1, 1, 2, 2)], dim=1))


@pytest.mark.parametrize(("shortcut", "projections"), [("zero_pad", 0), ("projection", 3), ("all_projections", 8)])
def test_shortcuts_of_resnet18(shortcut: str, projections: int):
    with torch.device("meta"):
        model = create_model("resnet18", shortcut=shortcut)
    assert sum("downsample.0.weight" in key for key in model.state_dict()) == projections


def test_plain_nets_are_the_residual_ones_without_shortcuts():
    """With the second convolution of every block silent, nothing of the input reaches a plain net's output."""
    for name, reaches in (("plain20_cifar", False), ("resnet20_cifar", True)):
        model = create_model(name).eval()
        for module in model.modules():
            if hasattr(module, "conv2"):
                nn.init.zeros_(module.conv2.weight)
        with torch.no_grad():
            one, other = model(torch.zeros(1, 3, 8, 8)), model(torch.ones(1, 3, 8, 8))
        assert torch.equal(one, other) != reaches
    shapes = [
        {key: value.shape for key, value in create_model(f"{kind}20_cifar").state_dict().items()}
        for kind in ("plain", "resnet")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["plain34", "resnet34", "resnet20_cifar", "plain56_cifar"])
def test_residual_and_plain_nets_start_by_he(name: str):
    """Weights of variance 2 / (outputs * window), section 3.4 and He et al., Delving Deep into Rectifiers, 2015."""
    torch.manual_seed(0)
    for module in create_model(name).modules():
        if isinstance(module, nn.Conv2d):
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            few = 5 / module.weight.numel() ** 0.5  # drawn, so five of their own deviations
            assert module.weight.std().item() == pytest.approx(expected, rel=few)


def test_unknown_shortcut_gets_a_sentence():
    for name in ("resnet18", "resnet20_cifar"):
        with pytest.raises(ValueError, match="shortcut='A' must be one of 'zero_pad', 'projection', "):
            create_model(name, shortcut="A")


def test_densenet_layers_see_all_before_them():
    """The last layer of a block changes with the output of every layer before it."""
    thin = THIN["densenet"].model().eval()
    block = thin.features.denseblock1
    maps = [torch.randn(1, 16, 4, 4), torch.randn(1, 8, 4, 4)]
    with torch.no_grad():
        expected = block.denselayer2.conv1(F.relu(block.denselayer2.norm1(torch.cat(maps, 1))))
        expected = block.denselayer2.conv2(F.relu(block.denselayer2.norm2(expected)))
        assert torch.equal(block.denselayer2(maps), expected)
        x = torch.randn(1, 16, 4, 4)
        assert torch.equal(block(x)[:, :16], x)
        assert block(x).shape == (1, 32, 4, 4)
