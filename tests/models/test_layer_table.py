"""The layer table against torch: every size, every product, and receptive fields measured by changing pixels."""

from __future__ import annotations

import math
import re
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastconv.models import ModelInfo, create_model, layer_table, list_models, model_info
from fastconv.models.layer_table import LayerTable
from tests.models.references import quick, reference
from tests.models.test_behaviour import class_of
from tests.models.thin import THIN

# Araujo, Norris, Sim: Computing Receptive Fields of Convolutional Neural Networks, Distill 2019, table 1.
PUBLISHED_FIELDS = {"alexnet": 195, "vgg16": 212, "mobilenet_v1": 315}

# One of every docstring that tells a field.
TOLD_FIELDS = (
    "alexnet",
    "alexnet_2012",
    "densenet121",
    "densenet40_cifar",
    "efficientnet_lite0",
    "fcn_resnet50",
    "googlenet",
    "googlenet_2014",
    "lenet5",
    "lenet5_relu",
    "mobilenet_v1",
    "mobilenet_v2",
    "nin",
    "nin_cifar",
    "resnet18",
    "resnet32_cifar",
    "resnet50",
    "squeezenet1_0",
    "vgg16",
    "zfnet",
)


def seen_shapes(model: nn.Module, images: Tensor) -> dict[str, list[tuple[int, ...]]]:
    """The output shapes of every layer's calls, by torch's own hooks."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def note(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        first = output if torch.is_tensor(output) else output[0]
        shapes.setdefault(name, []).append(tuple(first.shape))

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return shapes


def checked(model: nn.Module, images: Tensor) -> LayerTable:
    """The table, when its sizes, formulas, parameters and products are torch's."""
    table = layer_table(model, images)
    found: dict[str, list[tuple[int, ...]]] = {}
    layers = dict(model.named_modules())
    for row in table.rows:
        if row.name in layers and row.kind.split()[0] == type(layers[row.name]).__name__:
            found.setdefault(row.name, []).append(row.output_shape)
        if row.by_formula is not None:
            assert row.output_shape[-2:] == row.by_formula, row
            assert row.formula.endswith(f"= {row.output_shape[-2]}"), row
    own = {name: shapes for name, shapes in seen_shapes(model, images).items() if name in found}
    assert found == own
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    assert 2 * table.multiply_adds == counter.get_total_flops()
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert table.parameters + table.idle_parameters == trainable
    return table


@pytest.mark.parametrize("name", THIN)
def test_every_row_is_torchs(name: str):
    """At both sizes, one of them odd for most strides; convolutions, pools and linear layers all have a row."""
    thin = THIN[name]
    with torch.device("meta"):
        for size in thin.sizes:
            model = thin.model(size=size)
            table = checked(model, torch.empty(1, thin.channels, size, size + (0 if thin.fixed else 32)))
    rows = {row.name for row in table.rows}
    windows = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.MaxUnpool2d)
    skipped = ("aux1", "aux2")  # in training only
    for key, module in model.named_modules():
        if isinstance(module, windows) and not key.startswith(skipped):
            assert key in rows, key


def geometries() -> list[nn.Module]:
    """Windows of every small kernel, stride, padding, dilation and rounding."""
    found: list[nn.Module] = []
    for kernel, stride, padding in product((1, 2, 3), (1, 2, 3, 4), (0, 1)):
        if 2 * padding <= kernel:
            found += [nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil) for ceil in (False, True)]
            found += [nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil) for ceil in (False, True)]
        found += [nn.Conv2d(1, 1, kernel, stride, padding, dilation=dilation) for dilation in (1, 2)]
        extras = range(min(stride, 2))
        found += [nn.ConvTranspose2d(1, 1, kernel, stride, padding, output_padding=extra) for extra in extras]
    return found


def test_the_formula_holds_for_every_geometry():
    with torch.device("meta"):
        for layer in geometries():
            for height, width in ((5, 6), (7, 8)):
                checked(nn.Sequential(layer), torch.empty(1, 1, height, width))


@pytest.mark.parametrize(
    "name", quick(list_models(), ("alexnet_2012", "googlenet_2014", "lenet5", "resnet50", "vgg16", "zfnet"))
)
def test_whole_networks_have_their_stated_totals(name: str):
    info = model_info(name)
    with torch.device("meta"):
        table = checked(create_model(name), torch.empty(1, info.channels, info.image_size, info.image_size))
    assert table.parameters + table.idle_parameters == info.parameters
    assert table.multiply_adds == info.multiply_adds


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_published_networks_have_tables_too(name: str):
    with torch.device("meta"):
        checked(reference(name), torch.empty(1, 3, 64, 64))


def field_of_last_window(table: LayerTable) -> float:
    return next(row.views[0].field for row in reversed(table.rows) if row.by_formula and row.views[0].field < math.inf)


@pytest.mark.parametrize("name", PUBLISHED_FIELDS)
def test_receptive_fields_are_the_published(name: str):
    with torch.device("meta"):
        table = layer_table(create_model(name), torch.empty(1, 3, 224, 224))
    assert field_of_last_window(table) == PUBLISHED_FIELDS[name]


@pytest.mark.parametrize("name", TOLD_FIELDS)
def test_docstrings_give_the_receptive_field(name: str):
    """The number the family's docstring tells, for the last layer with a window that does not see all."""
    info = model_info(name)
    build = info.build
    while hasattr(build, "func"):
        build = build.func
    with torch.device("meta"):
        table = layer_table(create_model(name), torch.empty(1, info.channels, info.image_size, info.image_size))
    told = build.__doc__.lower().split("receptive field")[-1]
    assert str(int(field_of_last_window(table))) in told


def classes_of_networks() -> dict[type[nn.Module], list[ModelInfo]]:
    found: dict[type[nn.Module], list[ModelInfo]] = {}
    for name in list_models():
        found.setdefault(class_of(model_info(name).build), []).append(model_info(name))
    return found


@pytest.mark.parametrize("network", classes_of_networks(), ids=lambda network: network.__name__)
def test_docstrings_tell_paper_size_counts_and_field(network: type[nn.Module]):
    """The year of a paper, and of one network at least the image's side and the counts, rounded or not."""
    told, infos = network.__doc__, classes_of_networks()[network]
    assert re.search(r"\b(19|20)\d\d\b", told)
    assert "receptive field" in told.lower() or "field of a region" in told
    assert any(re.search(rf"\b{info.image_size}\b|{info.image_size}x", told) for info in infos)
    for counts in ([info.parameters for info in infos], [info.multiply_adds for info in infos]):
        assert any(text in told for count in counts for text in spelled(count)), counts


def spelled(count: int) -> list[str]:
    units = {"M": 1e6, "G": 1e9, "T": 1e12}
    return [f"{count:,}", *(f"{count / unit:.{n}f} {key}" for key, unit in units.items() for n in range(4))]


def test_a_factor_for_each_channel_keeps_the_map_and_sees_all():
    """Squeeze-and-excitation: its product has the map's size, and behind it every value sees the whole image."""
    with torch.device("meta"):
        rows = layer_table(THIN["efficientnet"].model(), torch.empty(1, 3, 64, 96)).rows
    product = next(row for row in rows if row.kind == "mul")
    assert product.input_shape == product.output_shape
    assert all(math.isinf(row.views[0].field) for row in rows[rows.index(product) :])


def measured_field(layers: nn.Module, size: int) -> tuple[int, float]:
    """(field, jump) of the middle outputs: which pixels have a gradient, in rows.

    Outputs of a transposed convolution move by turns, so the jump is the mean of two.
    """
    edges = []
    for offset in (0, 2):
        images = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
        output = layers.double()(images)
        middle = output.shape[2] // 2
        output[0, 0, middle + offset, middle].backward()
        rows = images.grad[0, 0].abs().sum(1).nonzero().flatten()
        edges.append((rows[0].item(), rows[-1].item()))
    return edges[0][1] - edges[0][0] + 1, (edges[1][0] - edges[0][0]) / 2


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 1, 3), nn.AvgPool2d(3, 2), nn.Conv2d(1, 1, 5, padding=2)],
        [nn.Conv2d(1, 1, 3, dilation=3), nn.Conv2d(1, 1, 2, stride=2), nn.Conv2d(1, 1, 3, dilation=2)],
        [nn.Conv2d(1, 1, 4, stride=4), nn.ConvTranspose2d(1, 1, 4, stride=2), nn.Conv2d(1, 1, 3)],
    ],
)
def test_fields_and_jumps_are_what_gradients_show(layers: list[nn.Module]):
    model = nn.Sequential(*layers)
    for layer in layers:
        if hasattr(layer, "weight"):
            nn.init.constant_(layer.weight, 1.0)
    last = layer_table(model, torch.ones(1, 1, 64, 64)).rows[-1].views[0]
    field, jump = measured_field(model, 64)
    assert (last.field, last.jump) == (field, jump)


def test_shortcuts_and_branches_take_the_larger_field():
    with torch.device("meta"):
        rows = {row.name: row for row in layer_table(THIN["googlenet_2014"].model(), torch.empty(1, 3, 64, 64)).rows}
    joined = rows["inception3a"]
    assert joined.kind == "cat"
    assert joined.views[0].field == rows["inception3a.branch3.1.conv"].views[0].field
    assert joined.views[0].field > rows["inception3a.branch1.conv"].views[0].field


def test_the_table_leaves_the_model_as_it_was():
    model = THIN["resnet"].model()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    layer_table(model, torch.empty(1, 3, 32, 32))
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_looks_at_its_input_gets_a_sentence():
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Chooses has no fixed graph of layers, because its forward decides"):
        layer_table(Chooses(), torch.ones(1, 1, 2, 2))


def test_a_bad_image_gets_the_networks_own_sentence():
    with pytest.raises(RuntimeError, match="LeNet5 takes images of 32 x 32 pixels, but got 28 x 28"):
        layer_table(create_model("lenet5"), torch.empty(1, 1, 28, 28))
