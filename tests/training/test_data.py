"""Data sets, batches, augmentation and schedules: what they hold, that chance repeats, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastconv.models.images import CIFAR, DIGITS
from fastconv.training import open_data, recipe_for
from fastconv.training.augment import (
    Affine,
    AreaCrop,
    ColourShift,
    Crop,
    Flip,
    Light,
    PaddedCrop,
    augmented,
    central,
    ten_crops,
)
from fastconv.training.chance import generator_for
from fastconv.training.loader import Batches, normalize
from fastconv.training.schedules import Cosine, Plateau, Polynomial, Stairs, Steps, Watch
from fastconv.training.shapes import SHAPES, draw


def test_digits():
    data = open_data("digits", size=32, channels=1)
    assert (len(data.train), len(data.held), data.classes) == (1438, 359, tuple("0123456789"))
    image, label = data.train[0]
    assert image.shape == (1, 32, 32) and image.dtype == torch.uint8 and label in range(10)
    assert not data.mirrored
    pictures = {data.train[i][0].numpy().tobytes() for i in range(len(data.train))}
    assert not any(data.held[i][0].numpy().tobytes() in pictures for i in range(len(data.held)))


def test_shapes_are_what_their_labels_say():
    """A shape fills its box to the pixel and the part of it that its class has; its colour is not the ground's."""
    filled = {"circle": 0.785, "square": None, "triangle": 0.5, "ring": 0.52}
    seen = set()
    for number in range(60):
        picture = draw(0, number, 96)
        label, box = int(picture.labels[0]), picture.boxes[0].int().tolist()
        covered = picture.mask == 1 + label
        rows, columns = covered.any(1).nonzero(), covered.any(0).nonzero()
        assert [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] == box
        share = covered.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
        name = SHAPES[label]
        seen.add(name)
        if filled.get(name) and name != "triangle":
            assert share == pytest.approx(filled[name], abs=0.06), name
        inside, ground = (picture.image[:, area].float().mean(1) for area in (covered, picture.mask == 0))
        assert (inside - ground).abs().max() > 30, number
    assert seen == set(SHAPES)


def test_shapes_repeat_and_keep_apart():
    again = [draw(3, 7, 64, count=(2, 5), span=(0.2, 0.5)) for _ in range(2)]
    assert torch.equal(again[0].image, again[1].image)
    assert not torch.equal(again[0].image, draw(4, 7, 64, count=(2, 5), span=(0.2, 0.5)).image)
    boxes = again[0].boxes
    assert len(boxes) == len(again[0].labels) >= 2
    assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    with pytest.raises(ValueError, match="size is 4"):
        draw(0, 0, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("cat", 40), ("dog", 200)):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.new("RGB", (20 + index, 30), (colour, index, 0)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def test_folders(folder: Path):
    data = open_data(str(folder), size=16, channels=3)
    assert (data.classes, len(data.train), len(data.held)) == (("cat", "dog"), 8, 2)
    assert [data.held[i][1] for i in range(2)] == [0, 1]
    assert data.train[0][0][0, 0, 0] == 40
    batches = Batches(data, 4, 16, CIFAR, (Crop(), Flip()))
    images, targets = batches(0)
    assert images.shape == (4, 3, 16, 16) and targets.shape == (4,)
    gray = open_data(str(folder), size=16, channels=1)
    assert gray.train[0][0].shape[0] == 1
    for part in ("train", "val"):
        (folder / part).mkdir()
    for name in ("cat", "dog"):
        (folder / name).rename(folder / "train" / name)
        (folder / "val" / name).mkdir()
        Image.new("L", (9, 9)).save(folder / "val" / name / "x.jpg")
    divided = open_data(str(folder), size=16, channels=3)
    assert (len(divided.train), len(divided.held)) == (10, 2)
    (folder / "val" / "cow").mkdir()
    Image.new("L", (9, 9)).save(folder / "val" / "cow" / "x.jpg")
    with pytest.raises(ValueError, match="differ: cow"):
        open_data(str(folder), size=16, channels=3)


def read_all(path: Path) -> None:
    data = open_data(str(path), size=16, channels=3)
    for index in range(len(data.train)):
        data.train[index]


def test_folders_that_cannot_be_learned(folder: Path):
    def refused(error: type[Exception], sentence: str, path: Path = folder) -> None:
        with pytest.raises(error, match=sentence):
            read_all(path)

    refused(FileNotFoundError, "there is no folder", folder / "nothing")
    refused(ValueError, "it has 0", folder / "cat")
    for index in range(5):
        (folder / "dog" / f"{index}.png").write_bytes(b"not a picture")
    refused(ValueError, r"The picture .*\.png cannot be read")
    for index in range(1, 5):
        (folder / "dog" / f"{index}.png").unlink()
    refused(ValueError, "has one picture")
    (folder / "dog" / "0.png").unlink()
    refused(ValueError, "has no pictures")


def test_dense_data_are_shapes():
    data = open_data("shapes", size=32, channels=3, dense=True)
    images, masks = Batches(data, 2, 32, CIFAR, (Flip(),))(0)
    assert images.shape == (2, 3, 32, 32) and masks.shape == (2, 32, 32) and masks.dtype == torch.int64
    assert data.classes[0] == "ground" and masks.max() < len(data.classes)
    with pytest.raises(ValueError, match="not for every pixel"):
        open_data("digits", size=32, channels=1, dense=True)


def test_flips_move_classes_with_their_pixels():
    data = open_data("shapes", size=32, channels=3, dense=True)
    turned = 0
    for index in range(8):
        image, mask = Batches(data, 1, 32, CIFAR, (Flip(),))._training_sample(0, index)
        plain, classes = Batches(data, 1, 32, CIFAR)._training_sample(0, index)
        flipped = torch.equal(image, plain.flip(2)) and torch.equal(mask, classes.flip(1))
        assert flipped or (torch.equal(image, plain) and torch.equal(mask, classes))
        turned += flipped
    assert 0 < turned < 8


def test_batches_are_a_function_of_their_number():
    data = open_data("digits", size=32, channels=1)
    batches, others = (Batches(data, 64, 32, DIGITS, (Affine(10, 0.1, 0.1), Flip()), seed) for seed in (0, 1))
    late = batches(100)
    batches(3)
    assert all(torch.equal(a, b) for a, b in zip(batches(100), late, strict=True))
    assert not torch.equal(others(100)[0], late[0])
    assert batches.augmentation == (Affine(10, 0.1, 0.1),)  # a mirrored digit is none
    order = [index for epoch in range(2) for index in batches._epoch_order(epoch)]
    assert sorted(order[:1438]) == sorted(order[1438:]) == list(range(1438))
    assert order[:1438] != order[1438:]
    shares = [Batches(data, 64, 32, DIGITS, batches.augmentation, 0, rank, 2) for rank in (0, 1)]
    joint = [torch.cat(parts) for parts in zip(*(share(5) for share in shares), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(joint, batches(5), strict=True))
    held = sum(len(s.held_batch(n)[1]) for s in shares for n in range(s.held_batches))
    assert held == len(data.held)
    with pytest.raises(ValueError, match="65 pictures cannot be shared evenly by 2"):
        Batches(data, 65, 32, DIGITS, world=2)


def picture(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(3, height, width, generator=generator_for("picture"))


STEPS = (Crop(), Crop(1.1, 2), AreaCrop(), PaddedCrop(), Flip(), ColourShift(), Light(), Affine(10, 0.1, 0.1))


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_augmentation_is_by_the_generator_alone(step):
    outputs = [augmented(picture(), (step,), 32, generator_for(seed)) for seed in (0, 0, *range(1, 9))]
    assert outputs[0].shape == (3, 32, 32) and outputs[0].isfinite().all()
    assert torch.equal(outputs[0], outputs[1])
    assert not all(torch.equal(outputs[0], output) for output in outputs[2:])


def test_colours_shift_along_their_principal_components():
    """AlexNet, section 4.1: every pixel moves by one vector, whose deviations are a tenth of the components' own."""
    step, image = ColourShift(), torch.rand(3, 4, 5)
    moves = []
    for seed in range(2000):
        moved = step(image, 4, torch.Generator().manual_seed(seed)) - image
        assert torch.allclose(moved, moved[:, :1, :1].expand_as(moved), atol=1e-6)
        moves.append(moved[:, 0, 0])
    deviations = torch.linalg.svdvals(torch.stack(moves)) / len(moves) ** 0.5
    assert torch.allclose(deviations, 0.1 * torch.tensor([0.2175, 0.0188, 0.0045]), rtol=0.1)


def test_central_and_ten_crops():
    image = picture(32, 64)
    assert torch.equal(central(image, 32, 1.0), image[:, :, 16:48])
    crops = ten_crops(image, 28, 32 / 28)
    assert torch.equal(crops[0], image[:, :28, :28]) and torch.equal(crops[3], image[:, 4:, 36:])
    assert torch.equal(crops[5:], crops[:5].flip(3))
    assert normalize(torch.full((3, 2, 2), 0.5), CIFAR)[0, 0, 0].item() == pytest.approx((0.5 - 0.4914) / 0.2470)


def test_schedules():
    assert [Steps((0.5, 0.75)).scale(p) for p in (0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    assert Stairs(0.5, 4).scale(0.6) == 0.25
    assert Polynomial(1).scale(0.25) == 0.75 and Polynomial(0).scale(0.9) == 1
    assert Cosine().scale(0) == 1 and Cosine().scale(0.5) == pytest.approx(0.5)
    watch, schedule, scales = Watch(), Plateau(patience=2, most=2), []
    for error in (0.5, 0.5, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4):
        watch.see(schedule, error)
        scales.append(watch.scale(schedule))
    assert scales == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01])
    assert watch.best == 0.4 and math.isinf(Watch().best)


def test_rates_of_a_run():
    """The papers' rates at their places: of CIFAR's, rising and falling."""
    from fastconv.training import Job, Trainer

    recipe = replace(recipe_for("resnet110_cifar"), epochs=4, batch=1000)
    trainer = Trainer(Job("resnet20_cifar", "shapes", recipe))
    rates = []
    for step in range(trainer.steps):
        trainer.step = step
        rates.append(trainer.rate)
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
