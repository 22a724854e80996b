"""Training of detectors: the loop of classifiers with another loss and another measure."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastconv.models.detection import DETECTORS
from fastconv.models.registry import ModelInfo, layer_module
from fastconv.training.datasets import Data
from fastconv.training.objects import open_objects
from fastconv.training.precision import average_precision
from fastconv.training.trainer import Job, Trainer


class DetectorTrainer(Trainer):
    """A run of one of `fastconv.models.detection`: `accuracy` is the mean overlap of learned boxes with theirs,
    `held_accuracy` the average precision at an overlap of 0.5. Several processes average losses that each has divided
    by the cells of its own share, so they differ from one process more than rounding does."""

    measures = ("overlap", "AP50")

    def _info(self) -> ModelInfo:
        return DETECTORS[self.job.model]

    def _open(self) -> Data:
        return open_objects(self.job.data, size=self.size, seed=self.job.seed)

    def _build(self) -> nn.Module:
        return build_detector(self.job, len(self.data.classes))

    def _loss(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, overlap = self.model.loss(outputs, targets)
        images = len(targets)
        return loss, torch.stack([loss.detach() * images, overlap * images, torch.tensor(float(images))])

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss and AP50 on the held-out pictures; every process sees them all, since precision is no sum."""
        model = self.evaluated.eval()
        found, wanted, total = [], [], 0.0
        for number in range(self.batches.all_held.held_batches):
            images, targets = self.batches.all_held.held_batch(number)
            output = model(images.contiguous(memory_format=torch.channels_last))
            total += model.loss(output, targets)[0].item() * len(images)
            found += model.detect(output)
            wanted += [objects[objects[:, 0] >= 0] for objects in targets]
        return total / len(wanted), average_precision(found, wanted, len(self.data.classes))


def build_detector(job: Job, classes: int) -> nn.Module:
    """The job's detector for that many classes."""
    return DETECTORS[job.model].build(layer_module(job.layers), num_classes=classes)
