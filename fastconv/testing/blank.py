"""Operands of any problem without meaningful values: on the meta device to plan and compile, on a GPU to be timed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.problem import Problem
from fastconv.testing import inputs

INDEX = {"u8": torch.uint8, "i64": torch.int64}


def operands(problem: Problem, device: str = "meta") -> dict[str, Tensor]:
    """What a kernel's run() takes, by name; filters are channels_last, as in a channels_last model.

    On a real device floats are random, because zeros would be timed at another clock; indices are 0, which every window
    and plane has.
    """
    shapes, format = inputs.shapes(problem), inputs.memory_format(problem)

    def fill(t: Tensor) -> Tensor:
        return t if t.device.type == "meta" else t.uniform_(0.5, 1.5) if t.dtype.is_floating_point else t.zero_()

    def tensor(name: str, dtype: torch.dtype = inputs.DTYPES[problem.dtype]) -> Tensor:
        layout = torch.channels_last if name == "w" else format
        return fill(torch.empty(shapes[name], dtype=dtype, device=device).contiguous(memory_format=layout))

    def channels(*shape: int) -> Tensor:
        return fill(torch.empty(*shape, problem.c, device=device))

    if problem.is_norm:
        names = ("x", "residual") if problem.residual else ("x",) if problem.pass_ == "fprop" else ("x", "y")
        tensors = {name: tensor("x") for name in names}
        given = ("w", "bias", "mean", "variance") if problem.pass_ == "fprop" else ("mean", "variance")
        tensors |= {name: channels() for name in given}
        return tensors | ({} if problem.pass_ == "wgrad" else {"stats": channels(2)})
    if problem.is_conv:
        tensors = {name: tensor(name) for name in inputs.operand_names(problem)}
        if problem.bias:
            bias = torch.empty(shapes[inputs.written(problem)][1], dtype=tensor("x").dtype, device=device)
            tensors["bias"] = fill(bias)
        if problem.residual:
            tensors["residual"] = tensor(inputs.written(problem))
        return tensors
    tensors = {"x": tensor("x")} if problem.pass_ == "fprop" else {"y": tensor("y")}
    if problem.index != "none":
        tensors["index"] = tensor("x" if problem.op == "unpool2d" else "y", INDEX[problem.index])
    return tensors
