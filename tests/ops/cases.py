"""Small convolutions of every kind, for the tests of derivatives, tracing and autocast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastconv import functional


@dataclass(frozen=True)
class Case:
    """A call of ``fastconv.functional.<function>`` and of its namesake in torch."""

    name: str
    function: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    outputs: int
    options: dict

    def tensors(self, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> list[Tensor]:
        torch.manual_seed(0)
        shapes = (self.x, self.weight, (self.outputs,))
        return [torch.randn(shape).to(dtype).requires_grad_(requires_grad) for shape in shapes]

    def ours(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return getattr(functional, self.function)(x, weight, bias, **self.options)

    def theirs(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return getattr(torch.nn.functional, self.function)(x, weight, bias, **self.options)


CASES = [
    Case("plain", "conv2d", (2, 3, 5, 4), (4, 3, 3, 2), 4, {}),
    Case("strided", "conv2d", (2, 2, 6, 7), (3, 2, 3, 2), 3, {"stride": (2, 3), "padding": (1, 2)}),
    Case("dilated", "conv2d", (1, 2, 7, 6), (2, 2, 3, 2), 2, {"dilation": (2, 3), "padding": (2, 1)}),
    Case("grouped", "conv2d", (2, 4, 4, 5), (6, 2, 2, 3), 6, {"groups": 2}),
    Case("depthwise", "conv2d", (2, 3, 5, 4), (6, 1, 3, 3), 6, {"groups": 3, "padding": 1}),
    Case("same", "conv2d", (1, 2, 5, 6), (3, 2, 4, 2), 3, {"padding": "same"}),
    Case("unbatched", "conv2d", (2, 5, 4), (3, 2, 2, 3), 3, {"padding": 1}),
    Case("sequence", "conv1d", (2, 4, 7), (6, 2, 3), 6, {"groups": 2, "stride": 2, "padding": 1}),
    Case("transposed", "conv_transpose2d", (2, 3, 3, 4), (3, 2, 2, 3), 2, {"stride": (2, 1), "padding": (0, 1)}),
    Case(
        "transposed_grouped",
        "conv_transpose2d",
        (1, 4, 2, 3),
        (4, 2, 3, 2),
        4,
        {"stride": 2, "groups": 2, "output_padding": (1, 0)},
    ),
    Case(
        "transposed_much_output_padding",
        "conv_transpose2d",
        (1, 2, 3, 2),
        (2, 3, 2, 2),
        3,
        {"stride": (1, 2), "dilation": (3, 4), "output_padding": (2, 3), "padding": (1, 0)},
    ),
    Case("transposed_sequence", "conv_transpose1d", (2, 3, 4), (3, 2, 3), 2, {"stride": 2, "output_padding": 1}),
]
