"""What every network does: take two sizes, learn, save and load, swap, export, compile, refuse bad input."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastconv
from fastconv.models import load_weights, model_info
from fastconv.models.registry import layer_module
from fastconv.nn import sequence
from tests.models.references import NAMES, quick, relative_error, stacked
from tests.models.thin import CLASSES, THIN, logits, without_chance

STEPS = 3
SHARE = 0.02  # of the loss, which one step would take away if the loss were linear
ROUNDING = 1e-4  # of kernels that add in another order, through a few layers

COMPILED = ("lenet5", "resnet", "googlenet", "densenet_cifar", "fcn8s", "mobilenet_v1")
SMALLEST = {"lenet5": 32, "lenet5_relu": 16, "lenet5_softmax": 32, "mlp": 1}  # image_size


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def class_of(build) -> type[nn.Module]:
    """The class behind any number of partial applications."""
    while hasattr(build, "func"):
        build = build.func
    return build


def test_every_class_has_a_thin_network():
    assert {class_of(model_info(name).build) for name in NAMES} == {class_of(thin.build) for thin in THIN.values()}


@pytest.mark.parametrize("name", THIN)
def test_sizes_and_gradients(name: str):
    """Logits of the right shape at both sizes, in both modes; every trainable parameter gets a finite gradient."""
    thin = THIN[name]
    assert len(set(thin.sizes)) == 2
    for size in thin.sizes:
        model, images = thin.model(size=size), thin.images(size)
        with torch.no_grad():
            assert logits(model.eval()(images)).shape == thin.output_shape(images)
        outputs = model.train()(images)
        assert logits(outputs).shape == thin.output_shape(images)
        stacked(outputs).square().mean().backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, key
                assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", THIN)
def test_three_steps_lower_the_loss(name: str):
    thin = THIN[name]
    model = without_chance(thin.model())
    images = thin.images()
    targets = torch.arange(len(images)) % CLASSES  # a class for each image, or for all pixels of it
    if thin.dense:
        targets = targets.view(-1, 1, 1).expand(-1, *images.shape[2:])
    optimizer = torch.optim.SGD(model.parameters())
    losses = []
    for step in range(STEPS + 1):
        loss = F.cross_entropy(logits(model(images)), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            steepness = sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None)
            optimizer.param_groups[0]["lr"] = SHARE * losses[0] / steepness
        optimizer.step()
    assert losses[STEPS] < losses[0], losses


@pytest.mark.parametrize("name", THIN)
def test_saved_weights_give_the_same_bits(name: str, tmp_path: Path):
    thin = THIN[name]
    saved, fresh = thin.model(seed=3), thin.model(seed=4)
    images = thin.images(count=2)
    with torch.no_grad():
        saved.train()(images)  # moves the statistics of batch norms
    torch.save(saved.state_dict(), tmp_path / "net.pth")
    load_weights(fresh, tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(stacked(fresh.eval()(images)), stacked(saved.eval()(images)))


@pytest.mark.parametrize("name", THIN)
def test_swap_and_restore_keep_every_bit(name: str):
    thin = THIN[name]
    model = thin.model("torch").eval()
    classes = {key: type(module) for key, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = thin.images(count=2)
    with torch.no_grad():
        before = stacked(model(images))
        report = fastconv.swap(model)
        after = stacked(model(images))
    ours = thin.model("fastconv")
    sequence.join(ours)
    built = {key: type(module) for key, module in ours.named_modules()}
    assert not [row for row in report.rows if row.kept]
    assert {key: type(module) for key, module in model.named_modules()} == built
    assert relative_error(after, before) <= ROUNDING
    fastconv.restore(model)
    assert {key: type(module) for key, module in model.named_modules()} == classes
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(stacked(model(images)), before)


@pytest.mark.parametrize("name", THIN)
def test_exported_program_gives_the_same(name: str):
    thin = THIN[name]
    model = thin.model().eval()
    images = thin.images(count=2)
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        assert relative_error(stacked(program.module()(images)), stacked(model(images))) <= ROUNDING


@pytest.mark.parametrize("name", quick(THIN, COMPILED))
def test_compiled_network_learns_the_same(name: str):
    thin = THIN[name]
    model = without_chance(thin.model())
    images = thin.images(count=2)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    gradients = []
    for network in (model, compiled):
        torch.manual_seed(5)
        model.zero_grad()
        logits(network(images)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch._dynamo.reset()
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", THIN)
def test_bad_images_get_a_sentence(name: str):
    thin = THIN[name]
    size = thin.sizes[0]
    with torch.device("meta"):
        model = thin.model().eval()
        said = rf"{type(model).__name__} takes images \[N, {thin.channels}, H, W\], but got a tensor of shape \[2, 2, "
        with pytest.raises(RuntimeError, match=said):
            model(torch.empty(2, 2, size, size))
        with pytest.raises(TypeError, match=rf"{type(model).__name__} takes a tensor of images .* but got a str\."):
            model("cat.png")
        with pytest.raises(RuntimeError, match="takes images"):
            model(torch.empty(thin.channels, size, size))
        with pytest.raises(RuntimeError, match=r"takes images of (at least )?\d+ x \d+ pixels") as caught:
            model(torch.empty(2, thin.channels, 0, size))
        smallest = int(re.search(r"(\d+) x", str(caught.value)).group(1))
        if "deconvnet" not in name:  # it takes multiples of 32
            with pytest.raises(RuntimeError, match=f"{smallest} x {smallest} pixels, but got"):
                model(torch.empty(2, thin.channels, smallest - 1, smallest))
        images = torch.empty(2, thin.channels, smallest, smallest)
        assert logits(model(images)).shape == thin.output_shape(images)


def test_networks_of_one_size_have_a_smallest():
    assert set(SMALLEST) == {name for name, thin in THIN.items() if thin.fixed}


@pytest.mark.parametrize("name", SMALLEST)
def test_networks_of_one_size_name_it(name: str):
    """The size a network is built for is the one it takes; sizes no layer can take are refused when it is built."""
    thin, smallest = THIN[name], SMALLEST[name]
    size = thin.sizes[1]
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match=f"takes images of {size} x {size} pixels, but got 33 x 33"):
            thin.model(size=size)(torch.empty(1, thin.channels, 33, 33))
        images = torch.empty(2, thin.channels, smallest, smallest)
        assert thin.model(size=smallest)(images).shape == (2, CLASSES)
        for wrong in (smallest - 1, -1, 64.0, "64", True):
            with pytest.raises(ValueError, match=rf"={wrong!r} of \w+ must be an integer of at least {smallest}\."):
                thin.build(layer_module("fastconv"), image_size=wrong)


def test_deconvnet_names_the_step_of_its_sizes():
    with torch.device("meta"), pytest.raises(RuntimeError, match="sides are multiples of 32, but got 240 x 256"):
        THIN["deconvnet"].model()(torch.empty(1, 3, 240, 256))
