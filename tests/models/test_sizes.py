"""Every network of the list takes images of two sizes: its own, and one of 32 pixels more a side."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastconv.models import create_model, list_models, model_info
from tests.models.thin import logits

MORE = 32  # sides that must be multiples of something stay so


def answers(name: str, device: str) -> Iterator[tuple[int, Tensor]]:
    """Both sizes and the logits of an image of each; a network for one size is built for each."""
    info = model_info(name)
    fixed = "image_size" in inspect.signature(info.build).parameters
    with torch.device(device), torch.no_grad():
        model = create_model(name).eval()
        for size in (info.image_size, info.image_size + MORE):
            if fixed:
                model = create_model(name, image_size=size).eval()
            yield size, logits(model(torch.zeros(1, info.channels, size, size)))


@pytest.mark.parametrize("name", list_models())
def test_both_sizes_have_logits(name: str):
    """By shapes alone; those of a detector are its own."""
    info = model_info(name)
    for size, scores in answers(name, "meta"):
        if info.boxes:
            assert scores.numel() > 0
        else:
            assert scores.shape == (1, info.classes, *((size, size) if info.dense else ()))


@pytest.mark.full
@pytest.mark.parametrize("name", list_models())
def test_both_sizes_run(name: str):
    """With initial weights and the kernels; thin networks of every class always do."""
    assert all(scores.isfinite().all() for _, scores in answers(name, "cpu"))
