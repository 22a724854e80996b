"""What bottlenecks and separation save, against figures of the papers and sums by hand."""

from __future__ import annotations

import pytest
import torch

from fastconv import cli
from fastconv.models import create_model, model_info
from fastconv.models.savings import BOTTLENECK, SEPARATION, Saving, savings


def saved(name: str) -> list[Saving]:
    info = model_info(name)
    with torch.device("meta"):
        return savings(create_model(name), torch.empty(1, info.channels, info.image_size, info.image_size))


def test_separation_of_mobilenet():
    """Table 4 of the paper: 4866 M products and 29.3 M parameters with dense convolutions, 569 M and 4.2 M as it is."""
    (saving,) = saved("mobilenet_v1")
    stem, classifier = 3 * 32 * 9 * 112**2, 1024 * 1000
    assert (saving.idea, saving.places) == (SEPARATION, 13)
    assert (saving.multiply_adds + stem + classifier) / 1e6 == pytest.approx(569, abs=0.5)
    assert (saving.dense_multiply_adds + stem + classifier) / 1e6 == pytest.approx(4867, abs=0.6)
    assert (saving.dense_weights + 3 * 32 * 9 + classifier) / 1e6 == pytest.approx(29.3, abs=0.05)


def test_bottlenecks_of_resnet():
    """All blocks but the first, which has no more channels than its filter."""
    (saving,) = saved("resnet50")
    stages = ((2, 256, 64, 56), (4, 512, 128, 28), (6, 1024, 256, 14), (3, 2048, 512, 7))
    weights = dense = 0
    for stage, (count, wide, narrow, _) in enumerate(stages):
        for block in range(count):
            inputs = wide // 2 if stage and not block else wide
            weights += inputs * narrow + 9 * narrow * narrow + narrow * wide
            dense += 9 * inputs * wide
    assert saving.idea == BOTTLENECK
    assert (saving.places, saving.weights, saving.dense_weights) == (15, weights, dense)


def test_others():
    assert [(s.idea, s.places) for s in saved("googlenet_2014")] == [(BOTTLENECK, 18)]
    assert [(s.idea, s.places) for s in saved("mobilenet_v2")] == [(SEPARATION, 17)]
    assert [(s.idea, s.places) for s in saved("efficientnet_b0")] == [
        (SEPARATION, 16)
    ]  # through squeeze-and-excitation
    assert saved("vgg16") == saved("lenet5") == saved("resnet18") == []


def test_the_command_tells(capsys):
    assert cli.main(["models", "mobilenet_v1"]) == 0
    assert "depthwise separation, 13 times: 0.557 G multiply-adds and 3.18 M weights" in capsys.readouterr().out
