"""Folds batch norms of inference into the convolution or linear layer before them; the others become an affine map.

y = (conv(x) - mean) · weight / sqrt(variance + eps) + bias is a convolution with scaled filters and a new bias. It is
folded where nobody else reads the convolution's own result. Folding is done in float64 and rounded once, whenever a
kernel's form of the filter is to be packed; the folded filter itself is not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fastconv.graph import operators
from fastconv.graph.network import Network
from fastconv.graph.translate import batch_norm
from fastconv.graph.weights import Recipe


def run(network: Network) -> None:
    for node in network.calls(batch_norm):
        scale, shift = _affine(network, node)
        before = node.args[0]
        if _foldable(network, before):
            _fold(network, before, scale, shift)
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
        else:
            dtype = node.meta["val"].dtype
            name = node.args[3].target
            constants = [
                network.constant(node, value.to(dtype), f"{name}.{kind}")
                for value, kind in ((scale, "scale"), (shift, "shift"))
            ]
            network.replace(node, operators.affine, (node.args[0], *constants), {})


def _affine(network: Network, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, in float64."""
    weight, bias, mean, variance = (network.tensor(argument) for argument in node.args[1:])
    mean, variance = mean.double(), variance.double()
    scale = (variance + node.kwargs["eps"]).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach().double()


def _foldable(network: Network, node: fx.Node) -> bool:
    if node.target not in (operators.conv2d, operators.conv_transpose2d):
        return False
    plain = len(node.args) < 4 and node.kwargs.get("activation", "none") == "none"
    constant = network.tensor(node.args[1]) is not None
    bias = node.args[2] if len(node.args) > 2 else None
    return plain and constant and len(node.users) == 1 and (bias is None or network.tensor(bias) is not None)


def _fold(network: Network, node: fx.Node, scale: Tensor, shift: Tensor) -> None:
    weight = network.tensors.entry(node.args[1].target)
    like = network.tensors.like(node.args[1].target)
    bias = network.tensor(node.args[2]) if len(node.args) > 2 else None
    if bias is not None:
        shift = shift + scale * bias.detach().double()
    if node.target is operators.conv2d:
        by_filter = scale[:, None, None, None]
    else:  # (C_in, C_out / groups, R, S): the written channels lie along the second axis, a group behind the other
        groups = node.kwargs.get("groups", 1)
        by_filter = scale.view(groups, 1, -1).expand(-1, like.shape[0] // groups, -1).flatten(0, 1)[..., None, None]
    name = node.args[1].target
    constants = [
        network.constant(node, v, f"{name}.{kind}")
        for v, kind in ((Folded(weight, like, by_filter), "folded"), (shift.to(like.dtype), "shift"))
    ]
    node.args = (node.args[0], *constants)


class Folded:
    """A filter times a factor for each channel that it writes (see :class:`fastconv.graph.weights.Recipe`)."""

    def __init__(self, weight: Tensor | Recipe, like: Tensor, factor: Tensor):
        self._weight, self._factor = weight, factor
        self.like = torch.empty_like(like)  # in the weight's own stride order, which kernels read as well as any

    def make(self) -> Tensor:
        weight = self._weight if isinstance(self._weight, Tensor) else self._weight.make()
        folded = torch.empty_like(self.like, device=weight.device)
        return folded.copy_(weight.detach().double() * self._factor)

    def release(self) -> None:
        """It goes with its last user."""
