"""Detections drawn into their picture: a frame in the colour of the class, and its name above."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence

from torch import Tensor

from fastconv.models.detection import Detections
from fastconv.models.images import require

_TURN = 0.618034  # of the circle of colours from class to class: the golden section, so that neighbours differ
_STRONG = 0.9  # saturation and value of the colours
_LINE = 300  # pixels of a picture's shorter side for each of a frame's width


def save_detections(image: Tensor, found: Detections, classes: Sequence[str], path: str | os.PathLike) -> None:
    """Write uint8 `image` [3, H, W] with `found` in it; the surest lies on top."""
    pil_image, pil_draw = require("PIL.Image", "pillow"), require("PIL.ImageDraw", "pillow")
    picture = pil_image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    canvas = pil_draw.Draw(picture)
    width = 1 + min(picture.size) // _LINE
    things = list(zip(*(part.tolist() for part in found), strict=True))
    for box, score, label in reversed(things):
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(label * _TURN % 1, _STRONG, _STRONG))
        left, top, right, bottom = (round(side) for side in box)
        canvas.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=width)
        text = f"{classes[label]} {score:.0%}"
        at = left, max(0, top - canvas.textbbox((0, 0), text)[3] - 1)
        canvas.rectangle(canvas.textbbox(at, text), fill=colour)
        canvas.text(at, text, fill=(255, 255, 255))
    picture.save(path)
