"""The processes that train together: one, or as many as torchrun has started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Team:
    """This process's number among `world`. Alone, every method does nothing."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The process that prints and writes files."""
        return self.rank == 0

    def average_gradients(self, model: nn.Module) -> None:
        """Gradients become the mean of all shares'. The same parameters must have one in every process."""
        self._average([parameter.grad for parameter in model.parameters() if parameter.grad is not None])

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' values, in every process."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def share(self, counts: Tensor) -> Tensor:
        """The mean of the processes' counts: what a process divides its sums by, so that the
        mean over the processes is the sum of all over the count of all, or over 1 where nothing was counted."""
        return self.sum(counts.clone()).clamp(min=1) / self.world

    def average_buffers(self, model: nn.Module) -> None:
        """Running statistics become the mean of all shares', so that every process holds the same state."""
        self._average([buffer for buffer in model.buffers() if buffer.is_floating_point()])

    def _average(self, tensors: list[Tensor]) -> None:
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.world).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def agree(self, flag: bool) -> bool:
        """True everywhere as soon as it is true in one process."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.world > 1 else flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def team() -> Iterator[Team]:
    """The team of this process: torchrun's over gloo, or itself alone.

    gloo's threads end here, with the last reference to their group: one that lets go of a tensor while the interpreter
    shuts down aborts it. So no model is wrapped into a DistributedDataParallel, which would keep the group."""
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield Team()
        return
    started_here = not distributed.is_initialized()
    if started_here:
        # Its functions take the group of that moment as a default and keep it; optimizers import it at their first use.
        import torch.distributed.nn  # noqa: F401

        distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        if started_here:
            distributed.destroy_process_group()
