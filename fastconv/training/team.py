"""The processes that train together: one, or as many as torchrun has started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Team:
    """This process's number among `world`. Alone, every method does nothing."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The process that prints and writes files."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it is called in training: its gradients are averaged over the processes."""
        if self.world == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

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
        buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if self.world == 1 or not buffers:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        distributed.all_reduce(flat)
        parts = (flat / self.world).split([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def agree(self, flag: bool) -> bool:
        """True everywhere as soon as it is true in one process."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.world > 1 else flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            distributed.barrier()


@contextmanager
def team() -> Iterator[Team]:
    """The team of this process: torchrun's over gloo, or itself alone."""
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield Team()
        return
    started_here = not distributed.is_initialized()
    if started_here:
        distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        if started_here:
            distributed.destroy_process_group()
