"""From words on the command line to problems, corpora, models and files; every mistake becomes one sentence."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from fastconv.cli import UserError

DTYPES = ("f32", "f64", "f16", "bf16")
PASSES = ("fprop", "dgrad", "wgrad")
LAYOUTS = ("nhwc", "nchw")
DEFAULT_SIZE = 224


def one_of(value: str | None, allowed: tuple[str, ...], option: str) -> str | None:
    """The value, or a sentence with those there are."""
    if value is not None and value not in allowed:
        raise UserError(f"{option} must be one of {', '.join(allowed)}, but is {value!r}.")
    return value


def positive(value: int | None, option: str) -> int | None:
    """The value, or a sentence when it is not at least 1."""
    if value is not None and value < 1:
        raise UserError(f"{option} must be at least 1, but is {value}.")
    return value


def output_file(path: Path | None, option: str = "--json") -> Path | None:
    """The path, when a file can be written there: asked before the work, not after it."""
    if path is None:
        return None
    if path.is_dir():
        raise UserError(f"{option} {path} is a directory.")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {path}: the directory {path.absolute().parent} does not exist.")
    return path


def plot_file(path: Path | None, option: str = "--plot") -> Path | None:
    """The path, when a picture of that kind can be drawn there: asked before the work, not after it."""
    if output_file(path, option) is None:
        return None
    from fastconv.training.curves import pyplot

    figure = pyplot().figure()
    kinds = figure.canvas.get_supported_filetypes()
    pyplot().close(figure)
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise UserError(f"{option} {path}: the name must end in .{', .'.join(sorted(kinds))}.")
    return path


def input_file(path: Path, option: str) -> Path:
    """The path, when there is a file."""
    if not path.is_file():
        raise UserError(f"{option} {path}: there is no such file.")
    return path


def problem(text: str):
    """The problem of that string."""
    from fastconv.problem import Problem

    try:
        return Problem(text)
    except ValueError as error:
        raise UserError(str(error)) from None


def changed(problems: Counter, **changes: object) -> Counter:
    """The corpus with fields replaced (None leaves one alone); what a pass has no use for is dropped."""
    from fastconv.testing import corpus

    changes = {name: value for name, value in changes.items() if value is not None}
    pass_ = changes.pop("pass_", None)
    result: Counter = Counter()
    for item, count in problems.items():
        wanted = corpus.backward(item, pass_) if pass_ in ("dgrad", "wgrad") else item
        if wanted is None:
            continue
        try:
            result[wanted.replace(**changes, **({"pass_": pass_} if pass_ else {}))] += count
        except ValueError as error:
            raise UserError(f"{item} cannot be changed that way: {error}") from None
    return result


def suite(name: str) -> Counter:
    """A corpus by name or file."""
    from fastconv.testing import corpus

    try:
        return corpus.load(name)
    except FileNotFoundError as error:
        raise UserError(str(error)) from None
    except (ValueError, OSError) as error:
        raise UserError(f"--suite {name}: {error}") from None


@dataclass(frozen=True)
class Source:
    """A model by the word it was asked for, and what its images look like. ``own``: it is one of ours."""

    name: str
    model: nn.Module
    image_size: int
    own: bool
    channels: int = 3

    def example(self, batch: int, size: int | None = None) -> Tensor:
        """Random images [batch, channels, size, size]."""
        side = size or self.image_size
        return torch.randn(batch, self.channels, side, side, generator=torch.Generator().manual_seed(0))


def source(word: str) -> Source:
    """The model of ``NAME``, ``torchvision:NAME``, ``timm:NAME`` or ``FILE.py:CALLABLE``, with torch's layers."""
    torch.manual_seed(0)
    package, _, name = word.rpartition(":")
    if not package:
        return _own(word)
    if package.endswith(".py"):
        return _from_file(word, Path(package), name)
    if package not in ("torchvision", "timm"):
        raise UserError(f"A model is NAME, torchvision:NAME, timm:NAME or FILE.py:CALLABLE, not {word!r}.")
    try:
        _declare_torchvision_operators()
        module = importlib.import_module("torchvision.models" if package == "torchvision" else "timm")
    except Exception as error:  # a torchvision for another torch fails in ways of its own
        raise UserError(f"{word}: {package} cannot be imported ({error}).") from None
    if package == "torchvision":
        _known(name, module.list_models(), word)
        builder = inspect.signature(module.get_model_builder(name)).parameters
        model = module.get_model(name, **{w: None for w in ("weights", "weights_backbone") if w in builder})
        return Source(word, model, _torchvision_size(name), own=False)
    _known(name, module.list_models(), word)
    model = module.create_model(name, pretrained=False)
    return Source(word, model, module.data.resolve_data_config({}, model=model)["input_size"][-1], own=False)


@cache
def _declare_torchvision_operators() -> torch.library.Library:
    """Lets a torchvision that was compiled for another build of torch import: its models need none of its operators."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _torchvision_size(name: str) -> int:
    return {"inception_v3": 299}.get(name, DEFAULT_SIZE)


def _known(name: str, names: list[str], word: str) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        raise UserError(f"There is no model {word!r}." + (f" Did you mean {' or '.join(close)}?" if close else ""))


def _own(word: str) -> Source:
    from fastconv.models import create_model, list_models, model_info

    if word not in list_models():
        close = difflib.get_close_matches(word, list_models(), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "'fastconv models' lists them."
        raise UserError(f"There is no model {word!r}. {hint}")
    info = model_info(word)
    return Source(word, create_model(word, layers="torch"), info.image_size, own=True, channels=info.channels)


def _from_file(word: str, path: Path, name: str) -> Source:
    input_file(path, "The model file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from None
    build = getattr(module, name, None)
    if not callable(build):
        raise UserError(f"{path} has no callable {name!r}.")
    try:
        model = build()
    except Exception as error:
        raise UserError(f"{word}() failed: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise UserError(f"{word}() must return a torch.nn.Module, but returned a {type(model).__name__}.")
    return Source(word, model, DEFAULT_SIZE, own=False)
