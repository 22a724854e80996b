"""Which object a region or an anchor belongs to, and which of them a training step learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastconv.functional.boxes import box_iou, encode_boxes

NOTHING, UNSURE = -1, -2


@dataclass(frozen=True)
class Sampling:
    """How many regions of an image are learned from, and which.

    A region whose overlap with an object is at least `object` is one; below `nothing` it is ground, and in between, or
    below `least`, it is left out. At most `share` of the `count` that are drawn are objects.
    """

    count: int
    share: float
    object: float = 0.5
    nothing: float = 0.5
    least: float = 0.0
    force: bool = False  # an object's nearest regions are its own however small their overlap is


class Sample(NamedTuple):
    """What is learned from a batch: regions [R, 5] (image, box), labels [R] (0 the ground), goals [R, 4] as codes."""

    regions: Tensor
    labels: Tensor
    goals: Tensor


def match(objects: Tensor, boxes: Tensor, sampling: Sampling) -> Tensor:
    """[n]: the number of the object [m, 4] every box [n, 4] belongs to, NOTHING or UNSURE."""
    if not len(objects):
        return torch.full((len(boxes),), NOTHING, device=boxes.device)
    overlaps = box_iou(objects, boxes)
    best, owner = overlaps.max(dim=0)
    matched = owner.clone()
    matched[best < sampling.object] = UNSURE
    matched[(best < sampling.nothing) & (best >= sampling.least)] = NOTHING
    if sampling.force:
        nearest = (overlaps == overlaps.max(dim=1, keepdim=True).values).any(dim=0)
        matched[nearest] = owner[nearest]
    return matched


def draw(matched: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Indices of boxes that are objects, and of others, drawn at random; torch's generator is asked once for each."""
    found, ground = (matched >= 0).nonzero()[:, 0], (matched == NOTHING).nonzero()[:, 0]
    wanted = min(len(found), int(sampling.count * sampling.share))
    rest = min(len(ground), sampling.count - wanted)
    first = torch.randperm(len(found), device=matched.device)[:wanted]
    second = torch.randperm(len(ground), device=matched.device)[:rest]
    return found[first], ground[second]


def choose(
    regions: Sequence[Tensor], objects: Sequence[Tensor], sampling: Sampling, weights: tuple[float, ...]
) -> Sample:
    """What a step learns of regions [n, 4] and objects [m, 5] (class, box) of every image; objects are regions too."""
    everything = [torch.cat([boxes, rows[:, 1:]]) for boxes, rows in zip(regions, objects, strict=True)]
    matches = [match(rows[:, 1:], boxes, sampling) for boxes, rows in zip(everything, objects, strict=True)]
    drawn = [torch.cat(draw(matched, sampling)).sort().values for matched in matches]
    chosen, labels, goals = [], [], []
    for boxes, rows, matched, which in zip(everything, objects, matches, drawn, strict=True):
        own = matched[which]
        owned = own >= 0
        # Ground has no box to be moved to: its goal is where it is.
        places = torch.where(owned, own + len(which), torch.arange(len(which), device=own.device))
        wanted = torch.cat([boxes[which], rows[:, 1:]])[places]
        names = torch.cat([rows[:, 0].long() + 1, own.new_zeros(1)])
        chosen.append(boxes[which])
        labels.append(names[torch.where(owned, own, len(rows))])
        goals.append(encode_boxes(wanted, boxes[which], weights))
    return Sample(with_images(chosen), torch.cat(labels), torch.cat(goals))


def with_images(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes [n, 4] of every image -> regions [R, 5]: the image's number before each box."""
    numbers = [torch.full_like(own[:, :1], number) for number, own in enumerate(boxes)]
    return torch.cat([torch.cat(numbers), torch.cat(list(boxes))], dim=1)


def by_image(regions: Tensor, images: int) -> list[Tensor]:
    """Regions [R, 5] -> boxes [n, 4] of every image."""
    return [regions[regions[:, 0] == number, 1:] for number in range(images)]
