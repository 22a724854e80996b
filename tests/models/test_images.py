"""Pictures become the input a network was trained with, and what is no picture raises a sentence."""

from __future__ import annotations

import socket
import sys
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from fastconv.models import imagenet_labels, load_image, sample_photographs
from fastconv.models.images import DIGITS, IMAGENET, SIGNED_UNIT, Normalization, read_pixels

RAW = Normalization(mean=(0, 0, 0), std=(1 / 255,) * 3)  # leaves pixel values 0..255


def test_imagenet_labels_are_torchvisions_in_order():
    from tests.third_party import torchvision

    torchvision()
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    assert imagenet_labels() == tuple(_IMAGENET_CATEGORIES)
    assert len(imagenet_labels()) == 1000


def test_values_are_pixels_minus_127_over_128_by_default():
    x = load_image(numpy.full((40, 60, 3), (0, 127, 255), numpy.uint8), 32)
    assert x.shape == (1, 3, 32, 32)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    for channel, value in enumerate((-127 / 128, 0.0, 1.0)):
        torch.testing.assert_close(x[0, channel], torch.full((32, 32), value))


def test_imagenet_normalization_differs_by_channel():
    x = load_image(numpy.full((40, 60, 3), 255, numpy.uint8), 8, IMAGENET)
    expected = [(1 - mean) / std for mean, std in zip(*IMAGENET, strict=True)]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected))


def test_a_network_for_gray_images_gets_one_channel():
    """Luminance as Pillow weighs it: 299, 587 and 114 thousandths of red, green and blue."""
    x = load_image(numpy.full((40, 60, 3), (200, 100, 50), numpy.uint8), 28, DIGITS)
    assert x.shape == (1, 1, 28, 28)
    gray = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    torch.testing.assert_close(x, torch.full_like(x, (gray / 255 - 0.1307) / 0.3081))


@pytest.mark.parametrize("shape", [(64, 64, 3), (64, 128, 3), (128, 64, 3)])
def test_the_central_square_is_taken_without_scaling_where_it_fits(shape: tuple[int, int, int]):
    """Size 32 of a shorter side of 64 is a crop of 32 pixels: the middle of the picture as it is."""
    pixels = numpy.random.default_rng(0).integers(0, 256, shape, dtype=numpy.uint8)
    top, left = shape[0] // 2 - 16, shape[1] // 2 - 16
    expected = torch.from_numpy(pixels[top : top + 32, left : left + 32].copy()).permute(2, 0, 1).float()
    torch.testing.assert_close(load_image(pixels, 32, RAW)[0], expected)


def test_a_ramp_is_scaled_smoothly():
    """Bicubic interpolation of a straight ramp is the same ramp, read at the centers of the new pixels."""
    ramp = numpy.tile(numpy.arange(256, dtype=numpy.uint8).repeat(2), (512, 1))
    row = load_image(ramp, 224, RAW)[0, 0, 100]
    crop = 512 * 224 / 256
    expected = ((512 - crop) / 2 + (torch.arange(224) + 0.5) * crop / 224) / 2 - 0.5
    assert (row - expected).abs().max() < 1.1


def test_an_edge_overshoots_as_bicubic_interpolation_does():
    """Nearest and bilinear interpolation stay between the two values."""
    edge = numpy.full((64, 64), 50, numpy.uint8)
    edge[:, 32:] = 200
    x = load_image(edge, 256, RAW)
    assert x.min() < 48
    assert x.max() > 202


def test_a_path_an_image_and_an_array_agree(tmp_path: Path):
    name, image = sample_photographs()[2]
    image.save(tmp_path / f"{name}.png")
    x = load_image(image, 64)
    assert torch.equal(load_image(numpy.asarray(image), 64), x)
    assert torch.equal(load_image(tmp_path / f"{name}.png", 64), x)
    assert torch.equal(load_image(str(tmp_path / f"{name}.png"), 64, SIGNED_UNIT), x)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_color_mode_becomes_rgb(mode: str, tmp_path: Path):
    path = tmp_path / "picture.tiff"
    Image.new("RGB", (50, 40), (204, 204, 204)).convert(mode).save(path)
    assert (load_image(path, 16, RAW) - 204).abs().max() <= 1


def test_a_sideways_photograph_is_turned_upright(tmp_path: Path):
    image = Image.fromarray(numpy.arange(64 * 64, dtype=numpy.uint16).reshape(64, 64).astype(numpy.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was held turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert torch.equal(load_image(tmp_path / "turned.png", 32), load_image(upright, 32))


@pytest.mark.parametrize(
    "pixels",
    [
        numpy.zeros((8, 8, 3), numpy.float32),
        numpy.zeros((8, 8, 2), numpy.uint8),
        numpy.zeros((1, 8, 8, 3), numpy.uint8),
        numpy.zeros((0, 8, 3), numpy.uint8),
    ],
)
def test_an_array_that_is_no_picture_raises_a_sentence(pixels: numpy.ndarray):
    with pytest.raises(ValueError, match=r"source has shape .* and dtype .* but a picture is a uint8 array"):
        load_image(pixels, 8)


def test_other_types_and_sizes_raise_a_sentence():
    with pytest.raises(TypeError, match="source must be a path, a Pillow image or a numpy array, not int"):
        load_image(3, 8)
    for size in (0, -1, 2.5):
        with pytest.raises(ValueError, match=f"size={size} must be a positive number of pixels"):
            load_image(numpy.zeros((8, 8), numpy.uint8), size)


def test_files_that_are_no_pictures_are_named(tmp_path: Path):
    path = tmp_path / "cut.png"
    sample_photographs()[0][1].save(path)
    for content, said in (
        (path.read_bytes()[:5000], "truncated"),
        (b"text", "cannot identify"),
        (None, "No such file"),
    ):
        path.write_bytes(content) if content else path.unlink()
        for read in (partial(load_image, size=32), read_pixels):
            with pytest.raises(ValueError, match=rf"^The picture .*cut\.png cannot be read: .*{said}"):
                read(path)


def test_without_pillow_a_sentence_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match="needs the package pillow: pip install pillow"):
        load_image("picture.png", 32)


def test_sample_photographs_need_no_network_and_no_scikit_image_import(monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object) -> None:
        raise AssertionError("The sample photographs must not open a connection.")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    photographs = dict(sample_photographs())
    assert list(photographs) == ["astronaut", "camera", "chelsea", "coffee", "motorcycle_left", "rocket"]
    assert {image.mode for image in photographs.values()} == {"RGB"}
    assert photographs["chelsea"].size == (451, 300)
    assert "skimage" not in sys.modules


def test_without_scikit_image_a_sentence_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        sample_photographs()


def test_missing_photographs_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastconv.models.images._PHOTOGRAPHS", ("coffee.png", "tea.png"))
    with pytest.raises(FileNotFoundError, match=r"lacks the photographs tea\.png in "):
        sample_photographs()
