"""Pictures with boxes: shapes drawn on the spot, and a folder in COCO's format."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastconv.models.images import read_pixels
from fastconv.training.datasets import Data, Samples, divide
from fastconv.training.shapes import SHAPES, draw

ANNOTATIONS = "annotations.json"

_TRAIN, _HELD = 2000, 300
_COUNT = (1, 4)  # shapes in a picture
_SPAN = (0.2, 0.5)  # of its side


def open_objects(word: str, *, size: int, seed: int = 0) -> Data:
    """The data set `word` for detectors: "shapes", or a folder with pictures and an `annotations.json`.

    A sample's target is [n, 5]: class, left, top, right, bottom in pixels of its picture. The file has COCO's `images`,
    `annotations` (`bbox` is left, top, width, height; `iscrowd` ones are left out) and `categories`; file names are
    relative to the folder, or to its `images`. ValueError or FileNotFoundError in one sentence where it cannot be used.
    """
    return _shapes(size, seed) if word == "shapes" else _coco(Path(word), seed)


def _shapes(size: int, seed: int) -> Data:
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def get(first: int, index: int) -> tuple[Tensor, Tensor]:
        number = first + index
        if number not in kept:
            picture = draw(seed, number, size, count=_COUNT, span=_SPAN)
            kept[number] = picture.image, torch.cat([picture.labels[:, None].float(), picture.boxes], dim=1)
        return kept[number]

    train, held = Samples(_TRAIN, partial(get, _HELD)), Samples(_HELD, partial(get, 0))
    return Data("shapes", SHAPES, train, held, task="boxes")


def _coco(folder: Path, seed: int) -> Data:
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise FileNotFoundError(
            f"The data must be 'shapes' or a folder with {ANNOTATIONS}, and there is no file {path}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        objects = [row for row in content["annotations"] if not row.get("iscrowd")]
        boxes = _boxes(objects, names, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"
        raise ValueError(f"The file {path} is not what COCO's format is: {what}.") from error
    if len(files) < 2 or not names:
        raise ValueError(f"The file {path} must name at least two pictures and a category.")
    places = {}
    for number, name in files.items():
        places[number] = next((p for p in (folder / name, folder / "images" / name) if p.is_file()), None)
        if places[number] is None:
            raise FileNotFoundError(f"The picture {folder / name} that {path.name} names is not there.")
    learned, held = divide([0] * len(files), seed)
    numbers = list(files)

    def get(which: list[int], index: int) -> tuple[Tensor, Tensor]:
        number = numbers[which[index]]
        return read_pixels(places[number]), boxes[number]

    parts = (Samples(len(which), partial(get, which)) for which in (learned, held))
    return Data(str(folder), tuple(names[key] for key in sorted(names)), *parts, task="boxes")


def _boxes(objects: list[dict[str, Any]], names: dict, files: dict) -> dict[Any, Tensor]:
    """Image -> [n, 5], with classes in the order of their ids."""
    classes = {key: index for index, key in enumerate(sorted(names))}
    rows: dict[Any, list[list[float]]] = {number: [] for number in files}
    for row in objects:
        left, top, width, height = (float(value) for value in row["bbox"])
        if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
            raise ValueError(f"the bbox {row['bbox']} is empty")
        if row["image_id"] not in rows or row["category_id"] not in classes:
            raise ValueError(f"an annotation is of image {row['image_id']} and category {row['category_id']}")
        rows[row["image_id"]].append([classes[row["category_id"]], left, top, left + width, top + height])
    return {number: torch.tensor(found, dtype=torch.float32).view(-1, 5) for number, found in rows.items()}
