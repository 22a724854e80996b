"""Training of detectors: the loop of classifiers with another loss and another measure."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.models.detection.common import objects_of
from fastconv.training.chance import drawing_for
from fastconv.training.datasets import Data
from fastconv.training.objects import open_objects
from fastconv.training.precision import average_precision
from fastconv.training.trainer import Trainer


class DetectorTrainer(Trainer):
    """A run of a detector: `accuracy` is the mean overlap of learned boxes with theirs, `held_accuracy` the average
    precision at an overlap of 0.5. Several processes count objects and regions together, so their loss is that of the
    joint batch; which regions are drawn differs by process, as dropout does, and batch norms see their own share."""

    measures = ("overlap", "AP50")

    def _open(self) -> Data:
        return open_objects(self.job.data, size=self.size, seed=self.job.seed)

    def _forward(self, images: Tensor, targets: Tensor) -> Tensor | tuple:
        return self.model.learn(images, targets)

    def _loss(self, outputs: Tensor | tuple, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, overlap = self.model.loss(outputs, targets, self.team.share)
        images = len(targets)
        return loss, torch.stack([loss.detach() * images, overlap * images, torch.tensor(float(images))])

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and AP50 on the held-out pictures; every process sees them all, since precision is no sum."""
        model = self.evaluated.eval()
        found, wanted, total = [], [], 0.0
        for number in range(self.batches.all_held.held_batches):
            images, targets = self.batches.all_held.held_batch(number)
            images = images.contiguous(memory_format=torch.channels_last)
            output = model(images)
            with drawing_for("held", self.job.seed, number):
                learned = model.learn(images, targets) if model.searches else output
            total += model.loss(learned, targets)[0].item() * len(images)
            found += model.detect(output)
            wanted += objects_of(targets)
        return total / len(wanted), average_precision(found, wanted, len(self.data.classes))
