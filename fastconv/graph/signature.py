"""What a plan takes and returns, and the sentences for what it does not take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastconv.graph.capture import Captured

BATCH = -1  # a size that may vary


@dataclass(frozen=True)
class TensorInput:
    """sizes: BATCH stands for any number of images."""

    name: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"  # its type

    def check(self, value: Any) -> int | None:
        """The value's batch, where it has one. Raises for a value that the plan was not made for."""
        if not isinstance(value, Tensor):
            raise TypeError(f"The input {self.name!r} must be a tensor, but is a {type(value).__name__}.")
        if value.device.type != self.device:
            where = "the CPU" if self.device == "cpu" else self.device
            raise ValueError(f"The input {self.name!r} is on {value.device}, but the plan runs on {where}.")
        if value.dtype != self.dtype:
            raise ValueError(f"The input {self.name!r} is {value.dtype}, but the plan was made for {self.dtype}.")
        if len(value.shape) != len(self.sizes) or any(
            size not in (BATCH, given) for size, given in zip(self.sizes, value.shape, strict=True)
        ):
            raise ValueError(
                f"The input {self.name!r} has shape {tuple(value.shape)}, but the plan was made for {self._shape()}: "
                f"optimize the model again for other sizes."
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"The input {self.name!r} requires a gradient, and a plan has none: call it under torch.no_grad(), or "
                f"use fastconv.swap for training."
            )
        return value.shape[0] if BATCH in self.sizes else None

    def _shape(self) -> str:
        return "(" + ", ".join("N" if size == BATCH else str(size) for size in self.sizes) + ")"


@dataclass(frozen=True)
class Signature:
    """inputs: in the order in which they nest; what is no tensor stands as the value it must have."""

    inputs: tuple[Any, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec

    @classmethod
    def of(cls, captured: Captured) -> Signature:
        inputs = []
        for node in captured.graph.nodes:
            if node.op == "placeholder":
                value = node.meta.get("val")
                if isinstance(value, Tensor):
                    sizes = tuple(size if isinstance(size, int) else BATCH for size in value.shape)
                    value = TensorInput(node.name, sizes, value.dtype)
                inputs.append(value)
        return cls(tuple(inputs), captured.in_spec, captured.out_spec)

    def on(self, device: str) -> Signature:
        """The same for tensors of another device."""
        inputs = tuple(replace(i, device=device) if isinstance(i, TensorInput) else i for i in self.inputs)
        return replace(self, inputs=inputs)

    @cached_property
    def arguments(self) -> int:
        """How many inputs there are, if each is an argument of its own: those need no flattening. Else 0."""
        count = len(self.inputs)
        return count if pytree.tree_flatten(((0,) * count, {}))[1] == self.in_spec else 0

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The inputs, flat. Raises for those the plan was not made for."""
        values = list(args)
        flat = args and not kwargs and len(args) == self.arguments and all(isinstance(value, Tensor) for value in args)
        if not flat:
            values, spec = pytree.tree_flatten((args, kwargs))
            if spec != self.in_spec:
                raise TypeError(f"The plan takes {len(self.inputs)} inputs as {self.in_spec}, but was given {spec}.")
        batches = set()
        for expected, value in zip(self.inputs, values, strict=True):
            if isinstance(expected, TensorInput):
                batches.add(expected.check(value))
            elif expected != value:
                raise ValueError(f"An input is {value!r}, but the plan was made for {expected!r}.")
        if len(batches - {None}) > 1:
            raise ValueError(f"The inputs hold different numbers of images: {sorted(batches - {None})}.")
        return values

    def takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the plan was made for such inputs."""
        try:
            self.check(args, kwargs)
        except (TypeError, ValueError):
            return False
        return True
