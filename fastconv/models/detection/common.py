"""What all detectors share: what they find, what their losses are made of, and how both are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastconv.functional.boxes import batched_nms, clip_boxes

_MOST = 100  # detections an image


class Detections(NamedTuple):
    """What was found in one image: boxes [n, 4] in pixels, scores [n] falling, labels int64 [n]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


pytree._register_namedtuple(Detections, serialized_type_name="fastconv.Detections")  # for torch.export.save


class Part(NamedTuple):
    """One summand of a loss: a sum over `count` things (cells, regions, images) whose mean counts."""

    total: Tensor
    count: float


class Lesson(NamedTuple):
    """The summands of a loss, and the overlap of learned boxes with theirs, which is shown and not learned."""

    parts: dict[str, Part]
    overlap: Part


def at_least_one(counts: Tensor) -> Tensor:
    """What sums are divided by where one process has the whole batch."""
    return counts.clamp(min=1)


class Detector(nn.Module):
    """A network with boxes for answers.

    `model(images)` is what inference needs and `detect` reads; `learn(images, targets)` is what a training step
    computes, and `lesson` compares it with `targets` [N, n, 5]: class and box, class -1 where an image has fewer.
    """

    searches = False  # whether `learn` needs the targets, to choose the regions it learns from

    def learn(self, images: Tensor, targets: Tensor) -> Tensor | tuple:
        """The forward pass of a training step."""
        return self(images)

    def lesson(self, output: Tensor | tuple, targets: Tensor) -> Lesson:
        """The parts of the loss of what `learn` gave."""
        raise NotImplementedError

    def detect(self, output: Tensor | tuple, *, score: float = 0.05, overlap: float = 0.5) -> list[Detections]:
        """What stands in an output: scores above `score`, no two of a class that overlap more than `overlap`."""
        raise NotImplementedError

    def loss(
        self, output: Tensor | tuple, targets: Tensor, share: Callable[[Tensor], Tensor] = at_least_one
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the mean overlap of learned boxes with theirs.

        Every part's sum is divided by what `share` makes of all counts. Where several processes each have a share of
        a batch, the mean count of theirs makes the mean of their losses that of the whole batch (`Team.share`).
        """
        parts, overlap = self.lesson(output, targets)
        counts = share(torch.tensor([part.count for part in (*parts.values(), overlap)], dtype=torch.float64))
        means = [part.total / count for part, count in zip(parts.values(), counts.tolist(), strict=False)]
        return sum(means), overlap.total.detach() / counts[-1].item()


class Finder(nn.Module):
    """A detector with its answers read: one module, and with torch.export one program, from images to boxes.

    A program is made for a number of images. Their height and width may vary (`torch.export.Dim`); that of a network on
    a pyramid holds for maps on the same side of 64 x 64 pixels as the example's, where `roi_align` changes its way, and
    of more than one pixel. With the max pools of torch 2.11 (`layers="torch"`), one made on even heights takes no odd
    ones. Loading a program needs `import fastconv.models.detection`, for its operators.
    """

    def __init__(self, network: Detector, *, score: float = 0.05, overlap: float = 0.5) -> None:
        super().__init__()
        self.network, self.score, self.overlap = network, score, overlap
        self.train(network.training)

    def forward(self, images: Tensor, regions: Tensor | None = None) -> list[Detections]:
        """[N, 3, H, W] -> what was found in each; in `regions` [R, 5] (image, box), where a network of regions gets
        them instead of finding its own."""
        output = self.network(images) if regions is None else self.network.look_at(images, regions)
        return self.network.detect(output, score=self.score, overlap=self.overlap)


def full(values: Tensor) -> Tensor:
    """At least float32: what autocast made of values is too coarse for boxes and losses."""
    return values if values.dtype == torch.float64 else values.float()


def survivors(
    boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int], overlap: float, most: int = _MOST
) -> Detections:
    """The detections that stay of candidates [n, 4], [n], [n] in one image of `size` (height, width)."""
    boxes = clip_boxes(boxes, size)
    stays = batched_nms(boxes, scores, labels, overlap)[:most]
    return Detections(boxes[stays], scores[stays], labels[stays])


def objects_of(targets: Tensor) -> list[Tensor]:
    """[N, n, 5] with rows of class -1 -> the objects [m, 5] of every image."""
    return [rows[rows[:, 0] >= 0] for rows in targets]
