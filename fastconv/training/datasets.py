"""Where labelled pictures come from: scikit-learn's digits, shapes drawn on the spot, a folder of pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastconv.models.images import read_pixels
from fastconv.training.chance import generator_for
from fastconv.training.shapes import SHAPES, draw

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")

_HELD_OUT = 0.2  # of digits, and of folders that are not divided
_SHAPES_TRAIN, _SHAPES_HELD = 2000, 400
_INK = 16  # sklearn's digits have values 0..16
_BORDER = 1 / 16  # of the picture, around a digit


@dataclass(frozen=True)
class Samples:
    """Labelled pictures: `get(i)` is the uint8 image [C, H, W] and its class, or what its task
    has for one: a mask of classes int64 [H, W], or boxes float [n, 5] with their classes before them."""

    count: int
    get: Callable[[int], tuple[Tensor, int | Tensor]]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        return self.get(index)


@dataclass(frozen=True)
class Data:
    """Samples to learn from and samples held out. `mirrored`: a mirrored picture keeps its class."""

    name: str
    classes: tuple[str, ...]
    train: Samples
    held: Samples
    mirrored: bool = True
    task: Literal["class", "pixels", "boxes"] = "class"


def open_data(word: str, *, size: int, channels: int, seed: int = 0, dense: bool = False) -> Data:
    """The data set `word`: "digits", "shapes", or a folder with a folder of pictures for every class.

    `size` is the side in pixels at which digits and shapes are made, `channels` 1 or 3. `dense` asks for a class for
    every pixel, which shapes alone have. A folder that has `train` and `val` inside is divided that way; of any
    other a fifth of every class is held out, the same one for the same seed. ValueError, FileNotFoundError or
    ImportError in one sentence where the data cannot be had.
    """
    if word == "shapes":
        return _shapes(size, channels, seed, dense)
    if dense:
        raise ValueError(f"The data {word!r} have a class for a picture, not for every pixel; 'shapes' has both.")
    return _digits(size, channels, seed) if word == "digits" else _folder(Path(word), channels, seed)


def _digits(size: int, channels: int, seed: int) -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install 'fastconv[train]'.") from error
    bunch = load_digits()
    border = round(size * _BORDER)
    digits = torch.from_numpy(bunch.images).float().unsqueeze(1) / _INK
    digits = F.interpolate(digits, (size - 2 * border,) * 2, mode="bicubic", align_corners=False).clamp(0, 1)
    images = (F.pad(digits, (border,) * 4) * 255).round().to(torch.uint8).expand(-1, channels, -1, -1)
    labels = torch.from_numpy(bunch.target).tolist()
    learned, held = divide(labels, seed)
    classes = tuple(str(digit) for digit in range(10))
    parts = [_chosen(list(images), labels, which) for which in (learned, held)]
    return Data("digits", classes, *parts, mirrored=False)


def divide(labels: list[int], seed: int) -> tuple[list[int], list[int]]:
    """Indices to learn from and held out: a fifth of every class, at least one picture."""
    learned, held = [], []
    for label in sorted(set(labels)):
        members = [index for index, other in enumerate(labels) if other == label]
        order = torch.randperm(len(members), generator=generator_for("held out", seed, label)).tolist()
        count = max(1, round(len(members) * _HELD_OUT))
        held += [members[i] for i in order[:count]]
        learned += [members[i] for i in order[count:]]
    return sorted(learned), sorted(held)


def _chosen(images: list, labels: list[int], which: list[int], read: Callable = lambda image: image) -> Samples:
    return Samples(len(which), lambda i: (read(images[which[i]]), labels[which[i]]))


def _shapes(size: int, channels: int, seed: int, dense: bool) -> Data:
    """Drawn once and kept: a picture takes a millisecond to draw and some kilobytes to keep."""
    kept: dict[int, tuple[Tensor, int | Tensor]] = {}

    def get(first: int, index: int) -> tuple[Tensor, int | Tensor]:
        number = first + index
        if number not in kept:
            picture = draw(seed, number, size, count=(1, 3) if dense else (1, 1), span=(0.3, 0.8))
            image = picture.image if channels == 3 else _gray(picture.image)
            kept[number] = image, picture.mask if dense else int(picture.labels[0])
        return kept[number]

    classes = ("ground", *SHAPES) if dense else SHAPES
    train, held = Samples(_SHAPES_TRAIN, partial(get, _SHAPES_HELD)), Samples(_SHAPES_HELD, partial(get, 0))
    return Data("shapes", classes, train, held, task="pixels" if dense else "class")


def _gray(image: Tensor) -> Tensor:
    return image.float().mean(0, keepdim=True).round().to(torch.uint8)


def _folder(path: Path, channels: int, seed: int) -> Data:
    if not path.is_dir():
        raise FileNotFoundError(f"The data must be 'digits', 'shapes' or a folder, and there is no folder {path}.")
    read = partial(read_pixels, channels=channels)
    if (path / "train").is_dir() and (path / "val").is_dir():
        classes, files, labels = _pictures(path / "train")
        held_classes, held_files, held_labels = _pictures(path / "val")
        if classes != held_classes:
            odd = sorted(set(classes) ^ set(held_classes))
            raise ValueError(f"The classes of {path / 'train'} and {path / 'val'} differ: {', '.join(odd)}.")
        train = _chosen(files, labels, list(range(len(files))), read)
        held = _chosen(held_files, held_labels, list(range(len(held_files))), read)
    else:
        classes, files, labels = _pictures(path)
        for label, name in enumerate(classes):
            if labels.count(label) == 1:
                raise ValueError(f"The class {path / name} has one picture; learning and checking take two.")
        learned, held_out = divide(labels, seed)
        train, held = (_chosen(files, labels, which, read) for which in (learned, held_out))
    return Data(os.fspath(path), classes, train, held)


def _pictures(path: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Names of the classes, files, and the class of each file."""
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(
            f"The folder {path} must have a folder of pictures for each class, at least two; it has {len(folders)}."
        )
    files, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES and file.is_file())
        if not found:
            raise ValueError(f"The folder {folder} has no pictures ({', '.join(PICTURES)}).")
        files += found
        labels += [label] * len(found)
    return tuple(folder.name for folder in folders), files, labels
