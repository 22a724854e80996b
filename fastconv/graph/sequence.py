"""Lowered steps run one by one through the rows of the list, on tensors of any device."""

from __future__ import annotations

from collections.abc import Sequence as Tensors
from typing import Any

import torch
from torch import Tensor

from fastconv import dispatch
from fastconv.graph.select import NoKernel, Selection
from fastconv.graph.values import DTYPES, Buffer, Step, Value
from fastconv.problem import Problem

_TORCH = {name: dtype for dtype, name in DTYPES.items()}


def by_list(problem: Problem, device: str) -> Selection:
    """What eager mode takes on a device. Slices are the sequence's own: kernels get them as tensors."""
    dense = problem.replace(in_offset=0, in_channels=0, out_offset=0, out_channels=0)
    try:
        return Selection(dispatch.plan(dense, device), dense)
    except RuntimeError as error:
        raise NoKernel(str(error)) from error


class Sequence:
    """Steps in order. A buffer is one tensor in the order of its memory; what several steps write has it from the
    start, the others take the result of their only step.
    """

    def __init__(self, steps: list[Step], inputs: list[Any], outputs: list[Any], device: torch.device):
        self._steps, self._inputs, self._outputs, self._device = steps, inputs, outputs, device

    def __call__(self, inputs: Tensors[Tensor]) -> list[Tensor]:
        """New tensors on the inputs' device, of the borders' sizes and strides."""
        memory: dict[Any, Tensor] = {}
        for number, given in enumerate(inputs):
            memory["input", number] = _flat(given)
        for step in self._steps:
            self._run(step, memory)
        made = (memory["output", number] for number in range(len(self._outputs)))
        return [flat.as_strided(out.sizes, out.strides) for flat, out in zip(made, self._outputs, strict=True)]

    def _run(self, step: Step, memory: dict[Any, Tensor]) -> None:
        kernel, problem = step.selection.kernel, step.selection.problem
        operands = {
            name: _dense(_view(value, memory[_key(value.buffer)]))
            for name, value in step.reads.items()
            if name not in step.strided
        }
        if "scale" in operands:
            operands["scale"] = operands["scale"].flatten(1)
        operands |= step.constants
        part = step.strided.get("out")
        for name, (sizes, strides, first) in step.strided.items():
            if name == "out":
                continue
            operands[name] = memory[_key(step.reads[name].buffer)].as_strided(sizes, strides, first)
        operands |= step.numbers
        if "variance" in step.constants:
            operands["eps"] = 0.0  # batch norms are affine maps by now
        out = step.out
        if kernel.native is not None:  # which writes what it is given
            shape = (out.n, out.c, out.h, out.w)
            format = torch.channels_last if out.layout == "nhwc" else torch.contiguous_format
            operands["out"] = torch.empty(shape, dtype=_TORCH[out.dtype], device=self._device, memory_format=format)
        result = kernel.run(problem, **operands)
        key = _key(out.buffer)
        if part is not None:
            if key not in memory:
                memory[key] = torch.empty(step.out.buffer.elements, dtype=_TORCH[out.dtype], device=self._device)
            memory[key].as_strided(*part).copy_(result)
            return
        if not out.width:
            memory[key] = _in_order(result, out.layout)
            return
        if key not in memory:
            size = out.n * out.h * out.w * out.width
            memory[key] = torch.empty(size, dtype=_TORCH[out.dtype], device=self._device)
        _view(out, memory[key]).copy_(result)


def _key(buffer: Buffer) -> Any:
    return buffer if buffer.where == "arena" else (buffer.where, buffer.number)


def _view(value: Value, flat: Tensor) -> Tensor:
    """N C H W of a value's buffer."""
    if value.layout == "nchw":
        return flat.view(value.n, value.c, value.h, value.w)
    whole = flat.view(value.n, value.h, value.w, value.width or value.c).permute(0, 3, 1, 2)
    return whole.narrow(1, value.offset, value.c) if value.width else whole


def _dense(tensor: Tensor) -> Tensor:
    dense = tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor if dense else tensor.contiguous(memory_format=torch.channels_last)


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order of its memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _in_order(tensor: Tensor, layout: str) -> Tensor:
    return (tensor if layout == "nchw" else tensor.permute(0, 2, 3, 1)).reshape(-1)
