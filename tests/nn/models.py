"""A small network to swap, and what a swap must not change of it."""

from __future__ import annotations

import torch
from torch import nn

X = torch.randn(2, 3, 6, 5)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))


def snapshot(model: nn.Module) -> list:
    """The identity of every module, its class and everything in its __dict__."""
    return [
        (
            name,
            id(m),
            type(m),
            {key: id(value) for key, value in vars(m).items()},
            tuple(map(id, m._parameters.values())),
        )
        for name, m in model.named_modules(remove_duplicate=False)
    ]


def without_classes(rows: list) -> list:
    return [(name, identity, values, parameters) for name, identity, _, values, parameters in rows]
