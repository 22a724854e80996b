"""From a photograph to a network's input, and a few photographs to try it with.

Pillow and numpy are imported only when a picture is loaded: building and timing networks needs neither.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

# The evaluation crop leaves 32 pixels of the resized image's side out, half of them on each side.
_CROP_MARGIN = 32

_PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
)


class Normalization(NamedTuple):
    """Mean and standard deviation of red, green, blue (or of gray alone), in units of the full pixel range 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# The statistics of ImageNet's training set: what torchvision's checkpoints were trained with.
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# (pixel - 127) / 128: what EfficientNet-Lite was trained with (MEAN_RGB, STDDEV_RGB in its own source).
SIGNED_UNIT = Normalization(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
# The statistics of CIFAR-10's training set.
CIFAR = Normalization(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
# The statistics of MNIST's training set, one gray channel.
DIGITS = Normalization(mean=(0.1307,), std=(0.3081,))


def load_image(
    source: str | os.PathLike | numpy.ndarray | Image,
    size: int,
    normalization: Normalization = SIGNED_UNIT,
) -> Tensor:
    """A picture as a network's input: float32 [1, 3, size, size], or [1, 1, size, size] in gray.

    `source` is a path, a Pillow image, or a uint8 array [H, W] or [H, W, 3 or 4] with values 0..255. The
    central square of size / (size + 32) of the shorter side is scaled to `size` pixels, bicubically. A file that is no
    picture raises a ValueError that names it.
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"The argument size={size!r} must be a positive number of pixels.")
    image = _open_rgb(source)
    crop = min(image.size) * size / (size + _CROP_MARGIN)
    left, top = (image.width - crop) / 2, (image.height - crop) / 2
    pil_image, numpy = require("PIL.Image", "pillow"), require("numpy", "numpy")
    image = image.resize((size, size), pil_image.Resampling.BICUBIC, box=(left, top, left + crop, top + crop))

    if len(normalization.mean) == 1:
        image = image.convert("L")
    pixels = torch.from_numpy(numpy.array(image)).view(size, size, -1).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
    return ((pixels - mean) / std).unsqueeze(0).contiguous()


def read_pixels(source: str | os.PathLike | numpy.ndarray | Image, channels: int = 3) -> Tensor:
    """A picture as it is: uint8 [3, H, W], or [1, H, W] in gray for `channels` 1.

    `source` is as in `load_image`. A file that is no picture raises a ValueError that names it.
    """
    image = _open_rgb(source)
    if channels == 1:
        image = image.convert("L")
    pixels = torch.from_numpy(require("numpy", "numpy").array(image))
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def sample_photographs() -> list[tuple[str, Image]]:
    """Six photographs as (name, RGB Pillow image): the ones scikit-image carries inside its package.

    The files are read where they lie, so nothing is imported from scikit-image or downloaded.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None:
        raise ImportError("The sample photographs are part of scikit-image: pip install scikit-image.")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    missing = [name for name in _PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"The installed scikit-image lacks the photographs {', '.join(missing)} in {folder}.")
    return [(Path(name).stem, _open_rgb(folder / name)) for name in _PHOTOGRAPHS]


def _open_rgb(source: str | os.PathLike | numpy.ndarray | Image) -> Image:
    """`source` as an RGB Pillow image, upright where the file says how the camera was held."""
    pil_image = require("PIL.Image", "pillow")
    if isinstance(source, str | os.PathLike):
        upright = require("PIL.ImageOps", "pillow").exif_transpose
        try:
            with pil_image.open(source) as image:
                return upright(image).convert("RGB")
        except (OSError, SyntaxError) as error:  # Pillow raises the second for some damaged files
            raise ValueError(f"The picture {source} cannot be read: {error}.") from error
    if isinstance(source, pil_image.Image):
        return source.convert("RGB")
    return pil_image.fromarray(_checked_pixels(source)).convert("RGB")


def _checked_pixels(source: numpy.ndarray) -> numpy.ndarray:
    numpy = require("numpy", "numpy")
    if not isinstance(source, numpy.ndarray):
        raise TypeError(
            f"The argument source must be a path, a Pillow image or a numpy array, not {type(source).__name__}."
        )
    is_picture = source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (3, 4))
    if source.dtype != numpy.uint8 or not is_picture or 0 in source.shape:
        raise ValueError(
            f"The argument source has shape {source.shape} and dtype {source.dtype}, "
            "but a picture is a uint8 array [H, W] or [H, W, 3 or 4] that is not empty."
        )
    return source


def require(module: str, package: str) -> ModuleType:
    """Import an optional module, or say which package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"Loading pictures needs the package {package}: pip install {package}.") from error
