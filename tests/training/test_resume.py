"""Runs that stop anywhere go on with the same bits; damaged or foreign checkpoints are refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastconv.training import CheckpointError, Data, Job, Recipe, Samples, Trainer, checkpoint, recipe_for
from fastconv.training.augment import Affine, Crop, Flip
from fastconv.training.schedules import Plateau, Polynomial

PICTURES, HELD, CLASSES = 24, 8, 3


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(count: int, channels: int, size: int, first: int = 0) -> Samples:
    def get(index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(first + index)
        return torch.randint(256, (channels, size, size), dtype=torch.uint8, generator=generator), index % CLASSES

    return Samples(count, get)


def small_data(channels: int = 1, size: int = 32) -> Data:
    classes = tuple("abc"[:CLASSES])
    return Data("noise", classes, noise(PICTURES, channels, size), noise(HELD, channels, size, first=1000))


SGD = Recipe(6, 3, 0.01, Plateau(patience=1), "test", decay=1e-4, augmentation=(Flip(), Affine(5, 0.1, 0.1)))
RMS = Recipe(
    *(8, 2, 1e-3, Polynomial(1), "test", "rmsprop"), average=0.9, warmup=1, smoothing=0.1, augmentation=(Crop(), Flip())
)
ADAM = Recipe(8, 2, 1e-3, Polynomial(1), "test", "adam", dropout=0.5)
# Recipe, network, and its data: batch norm and averages, dropout, two gray layers.
RUNS = {
    "lenet5_relu-sgd": (SGD, "lenet5_relu", small_data(), 32),
    "mobilenet_v1_050-rmsprop": (RMS, "mobilenet_v1_050", small_data(3, 32), 32),
    "squeezenet1_1-adam": (ADAM, "squeezenet1_1", small_data(3, 32), 32),
    "lenet5_relu-bfloat16": (SGD, "lenet5_relu", small_data(), 32),
}


def trainer(run: str, **changes) -> Trainer:
    recipe, model, data, size = RUNS[run]
    precision = "bfloat16" if run.endswith("bfloat16") else "float32"
    return Trainer(replace(Job(model, "noise", recipe, size=size, precision=precision), **changes), data=data)


def state(run: Trainer) -> dict[str, Tensor]:
    moments = {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in run.model.named_parameters()
        for key, value in run.optimizer.state[parameter].items()
        if value is not None
    }
    averaged = checkpoint.prefixed("average", run.average.state_dict()) if run.average else {}
    return run.model.state_dict() | moments | averaged


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(run: str, stop: int, tmp_path: Path):
    """Stopped within an epoch, at its end and behind it; torch's generator is somewhere else in between."""
    whole = trainer(run)
    assert whole.run()
    part = trainer(run)
    assert not part.run(stop=lambda: part.step >= stop)
    assert part.step == stop
    part.save(tmp_path / "run.safetensors")
    torch.rand(stop)
    resumed = trainer(run)
    resumed.load(tmp_path / "run.safetensors")
    torch.rand(7 * stop)
    assert resumed.run()
    assert resumed.history == whole.history
    ours, theirs = state(resumed), state(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    trainer("squeezenet1_1-adam").run(stop=lambda: True)
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ_and_repeat():
    weights = [next(trainer("lenet5_relu-sgd", seed=seed).model.parameters()) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = trainer("lenet5_relu-sgd")
    run.run(stop=lambda: True)
    path = tmp_path / "run.safetensors"
    run.save(path)
    return path


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_state(path: Path) -> None:
    tensors, content = checkpoint.read(path)
    del content["sums"]
    checkpoint.write(path, tensors, {key: content[key] for key in content if key not in ("format", "checksum")})


def damage_tensors(path: Path) -> None:
    tensors, content = checkpoint.read(path)
    del tensors["model.features.0.weight"]
    checkpoint.write(path, tensors, {key: content[key] for key in content if key not in ("format", "checksum")})


def damage_nothing_there(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_header, damage_byte, damage_empty, damage_state, damage_tensors, damage_nothing_there],
)
def test_damaged_checkpoints_are_refused(saved: Path, damage):
    damage(saved)
    fresh = trainer("lenet5_relu-sgd")
    with pytest.raises(CheckpointError, match=r"checkpoint .*run\.safetensors"):
        fresh.load(saved)


CHANGES = {
    "seed": ({"seed": 1}, "seed is 0 there and 1 here"),
    "rate": ({"recipe": replace(SGD, rate=0.5)}, "recipe.rate is 0.01 there and 0.5 here"),
    "precision": ({"precision": "bfloat16"}, "precision is 'float32' there"),
    "layers": ({"layers": "torch"}, "layers is 'fastconv' there"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_job_does_not_resume(saved: Path, change: str):
    changes, sentence = CHANGES[change]
    with pytest.raises(CheckpointError, match=sentence):
        trainer("lenet5_relu-sgd", **changes).load(saved)


def test_weights_for_use_do_not_resume(saved: Path):
    run = trainer("lenet5_relu-sgd")
    run.save_weights(saved)
    with pytest.raises(CheckpointError, match="weights for use"):
        run.load(saved)


def test_an_interrupted_write_keeps_the_old_file(saved: Path, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.replace", partial(_fail))
    with pytest.raises(OSError, match="disk"):
        trainer("lenet5_relu-sgd").save(saved)
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def _fail(*arguments):
    raise OSError("the disk is full")


def test_a_loss_that_is_not_finite_is_told():
    run = trainer("lenet5_relu-sgd", recipe=replace(SGD, rate=1e30))
    with pytest.raises(ArithmeticError, match="a lower learning rate"):
        run.run()


def test_every_model_has_a_recipe():
    from fastconv.models import list_models

    for name in list_models():
        assert recipe_for(name).source
    with pytest.raises(ValueError, match="no recipe for name='nope'"):
        recipe_for("nope")


def test_auxiliary_logits_count_by_their_weight():
    """GoogLeNet gives a tuple, torchvision's FCN a dict; the accuracy is that of the first."""
    run = trainer("lenet5_relu-sgd", recipe=replace(SGD, aux_weight=0.25))
    targets = torch.tensor([0, 2])
    right, wrong = 3.0 * torch.eye(CLASSES)[targets], 3.0 * torch.eye(CLASSES)[targets - 1]
    good, bad = (torch.nn.functional.cross_entropy(logits, targets).item() for logits in (right, wrong))
    for outputs, loss in (
        (right, good),
        ((right, wrong, wrong), good + 0.25 * 2 * bad),
        ({"out": right, "aux": wrong}, good + 0.25 * bad),
    ):
        found, (total, hits, count) = run._loss(outputs, targets)
        assert found.item() == pytest.approx(loss)
        assert (total.item(), hits, count) == (pytest.approx(2 * loss), 2, 2)


BAD = {
    "epochs": (replace(SGD, epochs=0), {}, "epochs=0"),
    "rate": (replace(SGD, rate=float("nan")), {}, "rate=nan"),
    "precision": (SGD, {"precision": "float8"}, "precision='float8'"),
    "layers": (SGD, {"layers": "keras"}, "layers='keras'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_jobs_are_refused(bad: str):
    recipe, changes, sentence = BAD[bad]
    with pytest.raises(ValueError, match=sentence):
        trainer("lenet5_relu-sgd", recipe=recipe, **changes)
