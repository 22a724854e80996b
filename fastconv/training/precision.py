"""Average precision of detections at one overlap: the measure of detectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastconv.functional.boxes import box_iou
from fastconv.models.detection import Detections

_LEAST_OVERLAP = 0.5


def average_precision(
    found: Sequence[Detections], wanted: Sequence[Tensor], classes: int, overlap: float = _LEAST_OVERLAP
) -> float:
    """AP at `overlap`, mean over the classes that occur, 0..1.

    `wanted` holds for every image its objects [n, 5] (class, box). A detection is right when it is the surest of its
    class whose best object it overlaps enough; the area under the precision made falling is taken at every recall.
    """
    means = []
    for label in range(classes):
        total = sum(int((objects[:, 0] == label).sum()) for objects in wanted)
        if total:
            hits = torch.cat(
                [_hits(f, w[w[:, 0] == label, 1:], label, overlap) for f, w in zip(found, wanted, strict=True)]
            )
            means.append(_area(hits, total))
    return sum(means) / len(means) if means else 0.0


def _hits(found: Detections, objects: Tensor, label: int, overlap: float) -> Tensor:
    """[n, 2] for one image and class: scores, and 1 where a detection takes an object nobody surer has taken."""
    chosen = found.labels == label
    boxes, scores = found.boxes[chosen], found.scores[chosen]
    right = torch.zeros_like(scores)
    taken = torch.zeros(len(objects), dtype=torch.bool)
    if len(objects) and len(boxes):
        best, which = box_iou(boxes, objects).max(1)
        for index in scores.argsort(descending=True, stable=True).tolist():
            if best[index] >= overlap and not taken[which[index]]:
                taken[which[index]] = True
                right[index] = 1
    return torch.stack([scores, right], dim=1)


def _area(hits: Tensor, total: int) -> float:
    """Under the curve of precision over recall."""
    if not len(hits):
        return 0.0
    right = hits[hits[:, 0].argsort(descending=True, stable=True), 1].double()
    precision = right.cumsum(0) / torch.arange(1, len(right) + 1)
    falling = precision.flip(0).cummax(0).values.flip(0)
    return float((falling * right).sum() / total)
