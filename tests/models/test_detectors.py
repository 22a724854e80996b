"""What every detector does, whatever its kind: two sizes, learn, save, swap, export, refuse bad input; its facts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastconv
from fastconv.models import create_model, layer_table, load_weights, model_info
from tests.models.references import DETECTORS, quick, relative_error
from tests.models.test_behaviour import ROUNDING, SHARE, STEPS, class_of
from tests.models.thin_detectors import CLASSES, TARGETS, THIN


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def first(output: Tensor | tuple) -> Tensor:
    return output if torch.is_tensor(output) else output[0]


def test_every_detector_has_a_thin_one():
    assert {class_of(model_info(name).build) for name in DETECTORS} == {class_of(thin.build) for thin in THIN.values()}


@pytest.mark.parametrize("name", DETECTORS)
def test_stated_facts_are_the_tables(name: str):
    info = model_info(name)
    with torch.device("meta"):
        table = layer_table(create_model(name), torch.empty(1, 3, info.image_size, info.image_size))
    assert (table.parameters, table.multiply_adds) == (info.parameters, info.multiply_adds)


@pytest.mark.parametrize("name", THIN)
def test_sizes_detections_and_gradients(name: str):
    thin = THIN[name]
    assert len(set(thin.sizes)) == 2
    for size in thin.sizes:
        model, images = thin.model(size=size), thin.images(size)
        with torch.no_grad():
            found = model.eval().detect(model(images), score=0.0)
        assert len(found) == 2
        for boxes, scores, labels in found:
            assert len(boxes) == len(scores) == len(labels)
            assert not len(boxes) or (boxes.min() >= 0 and boxes.max() <= size and labels.max() < CLASSES)
            assert (scores.diff() <= 0).all()
        assert sum(len(boxes) for boxes, _, _ in found)
        loss, overlap = model.loss(model.train().learn(images, TARGETS), TARGETS)
        assert 0 <= overlap <= 1
        loss.backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", THIN)
def test_pictures_without_objects_teach_too(name: str):
    model, images = THIN[name].model(), THIN[name].images()
    for targets in (torch.empty(2, 0, 5), torch.full((2, 1, 5), -1.0)):
        loss, overlap = model.loss(model.learn(images, targets), targets)
        loss.backward()
        assert loss.isfinite() and overlap == 0


@pytest.mark.parametrize("name", THIN)
def test_three_steps_lower_the_loss(name: str):
    model, images = THIN[name].model(), THIN[name].images()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD(model.parameters())
    losses = []
    for step in range(STEPS + 1):
        torch.manual_seed(0)  # the same regions are drawn
        loss, _ = model.loss(model.learn(images, TARGETS), TARGETS)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            steepness = sum(p.grad.square().sum().item() for p in model.parameters())
            optimizer.param_groups[0]["lr"] = SHARE * losses[0] / steepness
        optimizer.step()
    assert losses[STEPS] < losses[0], losses


@pytest.mark.parametrize("name", THIN)
def test_saved_weights_and_swapped_layers(name: str, tmp_path: Path):
    """Saved and loaded: the same bits. Swapped: the same answers; restored: the same bits."""
    thin = THIN[name]
    model, fresh, images = thin.model("torch", seed=3).eval(), thin.model("torch", seed=4).eval(), thin.images()
    torch.save(model.state_dict(), tmp_path / "net.pth")
    load_weights(fresh, tmp_path / "net.pth")
    with torch.no_grad():
        before = first(model(images))
        assert torch.equal(first(fresh(images)), before)
        report = fastconv.swap(model)
        swapped = first(model(images))
        assert not [row for row in report.rows if row.kept]
        if swapped.shape == before.shape:
            assert relative_error(swapped, before) <= ROUNDING
        fastconv.restore(model)
        assert torch.equal(first(model(images)), before)
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", THIN)
def test_exported_parts_give_the_same(name: str):
    """The whole network, or, of one that searches regions, everything that is a network in it."""
    thin = THIN[name]
    model = thin.model().eval()
    for part, shape in thin.parts or (("", thin.images().shape),):
        module, x = model.get_submodule(part), torch.randn(shape)
        with torch.no_grad():
            exported, own = torch.export.export(module, (x,)).module()(x), module(x)
        for ours, theirs in zip(*([y] if torch.is_tensor(y) else y for y in (exported, own)), strict=True):
            assert relative_error(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("name", quick(THIN, ("yolo_small", "yolo_v1", "rcnn")))
def test_compiled_detectors_answer_the_same(name: str):
    """In one graph, or, where regions are searched, in those around the search."""
    thin = THIN[name]
    model, images = thin.model().eval(), thin.images()
    with torch.no_grad():
        expected = model.detect(model(images), score=0.0)
        compiled = torch.compile(model, backend="eager", fullgraph=not model.searches)
        found = model.detect(compiled(images), score=0.0)
    torch._dynamo.reset()
    assert all(len(own.boxes) for own in expected)
    for ours, own in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, own))


@pytest.mark.parametrize("name", THIN)
def test_bad_images_get_a_sentence(name: str):
    thin = THIN[name]
    model = thin.model()
    for images in (torch.empty(2, 2, 64, 64), torch.empty(3, 64, 64), torch.empty(2, 3, 0, 64)):
        with pytest.raises(RuntimeError, match=rf"{type(model).__name__} takes images"):
            model(images)
        with pytest.raises(RuntimeError, match="takes images"):
            model.learn(images, TARGETS)
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match=r"images of (at least )?\d+ x \d+ pixels") as caught:
            model(torch.empty(2, 3, 0, 64))
        smallest = int(re.search(r"(\d+) x", str(caught.value)).group(1))
        with pytest.raises(RuntimeError, match=rf", but got {smallest - 1} x {smallest}"):
            model(torch.empty(2, 3, smallest - 1, smallest))
        thin.model().eval()(torch.empty(2, 3, smallest, smallest))
