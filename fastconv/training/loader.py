"""Batches by their number: any batch of a run can be made at any time, so resuming needs no position but the step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastconv.models.images import Normalization
from fastconv.training.augment import ColourShift, Flip, Light, Step, augmented, central, margin, resize
from fastconv.training.chance import generator_for
from fastconv.training.datasets import Data, Samples

_FULL_RANGE = 255
_NOTHING = -1.0  # the class, and the box, where an image has fewer objects than another of its batch
_UNMOVED = (Flip, ColourShift, Light)  # what pictures with boxes may be augmented by


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
        if self.data.task == "boxes":
            moving = [step for step in self.augmentation if not isinstance(step, _UNMOVED)]
            if moving:
                raise ValueError(f"Pictures with boxes cannot be augmented by {moving[0]}.")
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
    def all_held(self) -> Batches:
        """The same held-out pictures for a process that sees them all."""
        return self if self.world == 1 else replace(self, rank=0, world=1)

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
        if self.data.task == "boxes":
            image, target = fitted(image, target, self.size)
            for step in self.augmentation:
                before, image = image, step(image, self.size, generator)
                if isinstance(step, Flip) and not torch.equal(before, image):
                    target = mirrored(target, self.size)
            return self._normalize(image), target
        if self.data.task == "pixels":  # what moves pixels moves their classes
            both = torch.cat([image, target[None].float()])
            both = augmented(both, tuple(s for s in self.augmentation if isinstance(s, Flip)), self.size, generator)
            return self._normalize(both[:-1]), both[-1].long()
        return self._normalize(augmented(image, self.augmentation, self.size, generator)), torch.tensor(target)

    def _held_sample(self, samples: Samples, index: int) -> tuple[Tensor, Tensor]:
        image, target = samples[index]
        if self.data.task == "boxes":
            image, target = fitted(image.float() / _FULL_RANGE, target, self.size)
            return self._normalize(image), target
        share = 1.0 if self.data.task == "pixels" else margin(self.augmentation)
        return self._normalize(central(image.float() / _FULL_RANGE, self.size, share)), torch.as_tensor(target)

    def _normalize(self, image: Tensor) -> Tensor:
        return normalize(image, self.normalization)

    @staticmethod
    def _collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, targets = zip(*samples, strict=True)
        if targets[0].dim() == 2 and targets[0].is_floating_point():  # boxes: as many rows for every picture
            targets = pad_sequence(targets, batch_first=True, padding_value=_NOTHING).unbind()
        return torch.stack(images), torch.stack(targets)


def fitted(image: Tensor, objects: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The picture stretched to size x size, and its boxes with it."""
    scale = torch.tensor([1.0, size / image.shape[2], size / image.shape[1]])
    return resize(image, size, size), objects * scale[[0, 1, 2, 1, 2]]


def mirrored(objects: Tensor, size: int) -> Tensor:
    """[n, 5] of a picture that is `size` wide, after it was flipped."""
    label, left, top, right, bottom = objects.unbind(1)
    return torch.stack([label, size - right, top, size - left, bottom], dim=1)


def normalize(image: Tensor, normalization: Normalization) -> Tensor:
    """Values 0..1 [..., C, H, W] in the units a network was made for."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
    return (image - mean) / std
