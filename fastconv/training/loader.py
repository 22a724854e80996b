"""Batches by their number: any batch of a run can be made at any time, so resuming needs no position but the step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastconv.models.images import Normalization
from fastconv.training.augment import Flip, Step, augmented, central, margin
from fastconv.training.chance import generator_for
from fastconv.training.datasets import Data, Samples

_FULL_RANGE = 255


@dataclass
class Batches:
    """Batch `step` of a run: `batch` pictures of its epoch's order, of which every process takes its share.

    The order is drawn anew for every epoch, every picture's augmentation for every epoch and picture, from the seed
    alone: neither the number of processes nor an interruption changes what is learned. Pictures that do not fill a
    last batch are left out of that epoch.
    """

    data: Data
    batch: int
    size: int
    normalization: Normalization
    augmentation: tuple[Step, ...] = ()
    seed: int = 0
    rank: int = 0
    world: int = 1
    _order: tuple[int, list[int]] = field(default=(-1, []), repr=False)

    def __post_init__(self) -> None:
        if not self.data.mirrored:
            self.augmentation = tuple(step for step in self.augmentation if not isinstance(step, Flip))
        self.batch = min(self.batch, len(self.data.train))
        if self.batch % self.world:
            raise ValueError(f"A batch of {self.batch} pictures cannot be shared evenly by {self.world} processes.")

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.data.train) // self.batch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """This process's share of batch `step`: images [n, C, size, size] and classes [n] or masks [n, size, size]."""
        epoch, within = divmod(step, self.steps)
        share = self.batch // self.world
        first = within * self.batch + self.rank * share
        indices = self._epoch_order(epoch)[first : first + share]
        return self._collate([self._training_sample(epoch, index) for index in indices])

    @property
    def held_batches(self) -> int:
        """Batches of this process's share of the held-out pictures."""
        mine = len(range(self.rank, len(self.data.held), self.world))
        return -(-mine // self.batch)

    def held_batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number` of this process's share of the held-out pictures."""
        mine = range(self.rank, len(self.data.held), self.world)[number * self.batch : (number + 1) * self.batch]
        return self._collate([self._held_sample(self.data.held, index) for index in mine])

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = torch.randperm(len(self.data.train), generator=generator_for("order", self.seed, epoch))
            self._order = epoch, order.tolist()
        return self._order[1]

    def _training_sample(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.data.train[index]
        generator = generator_for("augmentation", self.seed, epoch, index)
        image = image.float() / _FULL_RANGE
        if isinstance(target, Tensor):  # what moves pixels moves their classes
            both = torch.cat([image, target[None].float()])
            both = augmented(both, tuple(s for s in self.augmentation if isinstance(s, Flip)), self.size, generator)
            return self._normalize(both[:-1]), both[-1].long()
        return self._normalize(augmented(image, self.augmentation, self.size, generator)), torch.tensor(target)

    def _held_sample(self, samples: Samples, index: int) -> tuple[Tensor, Tensor]:
        image, target = samples[index]
        share = 1.0 if isinstance(target, Tensor) else margin(self.augmentation)
        return self._normalize(central(image.float() / _FULL_RANGE, self.size, share)), torch.as_tensor(target)

    def _normalize(self, image: Tensor) -> Tensor:
        return normalize(image, self.normalization)

    @staticmethod
    def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, targets = zip(*samples, strict=True)
        return torch.stack(images), torch.stack(targets)


def normalize(image: Tensor, normalization: Normalization) -> Tensor:
    """Values 0..1 [..., C, H, W] in the units a network was made for."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
    return (image - mean) / std
