"""Sums and products with constants become affine maps: with one value a channel of a map (a layer's scale), or with one
for every element of the last axes (a table of positions), or with a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.translate import dtype, same, shape
from fastconv.graph.values import DTYPES

_ADD, _MUL = torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor


def run(network: Network) -> None:
    for node in network.calls(_ADD, _MUL):
        if dtype(node) not in DTYPES or node.kwargs.get("alpha", 1) != 1:
            continue
        for x, other in (node.args[:2], node.args[1::-1]):
            varies = isinstance(x, fx.Node) and not network.is_constant(x) and same(shape(x) or (), shape(node))
            if varies and _becomes_affine(network, node, x, other):
                break
    network.drop_unused()


def _becomes_affine(network: Network, node: fx.Node, x: fx.Node, other: Any) -> bool:
    sizes = shape(x)
    if isinstance(other, int | float) and len(sizes) > 1:
        constant = torch.tensor([other], dtype=dtype(x))
    elif network.is_constant(other) and dtype(other) == dtype(x):
        constant = network.tensor(other).detach()
    else:
        return False
    name = f"{node.name}.term"
    channels = _of_channels(constant, sizes)
    if channels is not None:
        neutral = torch.zeros_like(channels) if node.target is _MUL else torch.ones_like(channels)
        pair = (channels, neutral) if node.target is _MUL else (neutral, channels)
        network.replace(node, operators.affine, (x, *(network.constant(node, t, name) for t in pair)), {})
        return True
    constant = constant.reshape(1) if constant.numel() == 1 else _of_last_axes(constant, sizes)
    if constant is None:
        return False
    term = network.constant(node, constant, name)
    pair = (term, None) if node.target is _MUL else (None, term)
    network.replace(node, operators.row_affine, (x, *pair), {})
    return True


def _of_channels(constant: Tensor, sizes: tuple[Any, ...]) -> Tensor | None:
    """The values of a map's channels, or None."""
    if len(sizes) != 4 or constant.dim() < 3 or constant.shape[-2:] != (1, 1) or sizes[2:] == (1, 1):
        return None
    return constant.flatten() if constant.numel() == sizes[1] == constant.shape[-3] else None


def _of_last_axes(constant: Tensor, sizes: tuple[Any, ...]) -> Tensor | None:
    """A constant without leading axes of one place, if what is left are the tensor's last axes, but not all."""
    while constant.dim() and constant.shape[0] == 1 and constant.dim() > 1:
        constant = constant[0]
    axes = constant.dim()
    return constant if 0 < axes < len(sizes) and tuple(constant.shape) == tuple(sizes[-axes:]) else None
