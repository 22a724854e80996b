"""Boxes and regions: overlap, non-maximum suppression, RoI pooling and RoI align. torchvision's names and results.

A box is left, top, right, bottom in pixels. The functions are short compositions of torch's operators, so they run
wherever torch does and have its gradients; the suppression loop is over the boxes that stay, not over all.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CORNERS = 4


def box_area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair: [n, 4], [m, 4] -> [n, m]."""
    _check_boxes("boxes1", boxes1)
    _check_boxes("boxes2", boxes2)
    common = _common(boxes1[:, None], boxes2[None])
    return common / (box_area(boxes1)[:, None] + box_area(boxes2)[None] - common)


def generalized_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU less the empty part of the smallest box around both, box by box: [..., 4] twice -> [...], -1 to 1.

    Rezatofighi et al.: Generalized Intersection over Union, 2019. It has a gradient where boxes do not touch.
    """
    common = _common(boxes1, boxes2)
    union = box_area(boxes1) + box_area(boxes2) - common
    low, high = torch.minimum(boxes1, boxes2), torch.maximum(boxes1, boxes2)
    around = (high[..., 2] - low[..., 0]) * (high[..., 3] - low[..., 1])
    return common / (union + eps) - (around - union) / (around + eps)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay, by falling score: none overlaps a better one by more than `iou_threshold`."""
    _check_boxes("boxes", boxes)
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"Every box needs one score: boxes are {list(boxes.shape)}, scores {list(scores.shape)}.")
    order = scores.argsort(descending=True, stable=True)
    stays = []
    while len(order):
        best, order = order[0], order[1:]
        stays.append(best)
        order = order[box_iou(boxes[best][None], boxes[order])[0] <= iou_threshold]
    return torch.stack(stays) if stays else torch.empty(0, dtype=torch.int64, device=boxes.device)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of the same group `idxs` (a class, say), all groups at once."""
    if not len(boxes):
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    apart = boxes.max() - boxes.min() + 1  # groups moved so far from each other that they do not meet
    return nms(boxes + (idxs.to(boxes) * apart)[:, None], scores, iou_threshold)


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Tensor:
    """[N, C, H, W] and regions [n, 5] (image, box) -> [n, C, *output_size]: means of bilinear samples in each bin.

    He et al.: Mask R-CNN, 2017. `sampling_ratio` samples a bin and axis, at least 1 (torchvision's adaptive number
    for 0 has no equivalent here). `aligned` takes pixels for areas around their centers, not for points.
    """
    _check_regions(input, boxes)
    if sampling_ratio < 1:
        raise ValueError(f"The argument sampling_ratio={sampling_ratio} must be at least 1.")
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    corners = boxes[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    size = corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1.0)
    y = _samples(corners[:, 1], size[:, 1], rows, sampling_ratio)
    x = _samples(corners[:, 0], size[:, 0], columns, sampling_ratio)
    sampled = _bilinear(input, boxes[:, 0].long(), y, x)
    n, channels = sampled.shape[:2]
    return sampled.view(n, channels, rows, sampling_ratio, columns, sampling_ratio).mean((3, 5))


def roi_pool(input: Tensor, boxes: Tensor, output_size: int | tuple[int, int], spatial_scale: float = 1.0) -> Tensor:
    """[N, C, H, W] and regions [n, 5] (image, box) -> [n, C, *output_size]: maxima over bins of whole pixels.

    Girshick: Fast R-CNN, 2015, section 2.1. Boxes are rounded to pixels; a bin outside the image is 0.
    """
    _check_regions(input, boxes)
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    corners = torch.floor(boxes[:, 1:].detach() * spatial_scale + 0.5).long()  # C's round for what is not negative
    height, width = input.shape[2:]
    pooled = []
    for image, (left, top, right, bottom) in zip(boxes[:, 0].long().tolist(), corners.tolist(), strict=True):
        ys = _edges(top, max(bottom - top + 1, 1), rows, height)
        xs = _edges(left, max(right - left + 1, 1), columns, width)
        maps = input[image]
        bins = [
            maps[:, y0:y1, x0:x1].amax((1, 2)) if y1 > y0 and x1 > x0 else maps.new_zeros(len(maps))
            for y0, y1 in ys
            for x0, x1 in xs
        ]
        pooled.append(torch.stack(bins, 1).view(-1, rows, columns))
    return torch.stack(pooled) if pooled else input.new_zeros(0, input.shape[1], rows, columns)


def _common(a: Tensor, b: Tensor) -> Tensor:
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def _samples(start: Tensor, length: Tensor, bins: int, each: int) -> Tensor:
    """[n, bins * each]: the places of samples, evenly over the length."""
    at = (torch.arange(bins * each, device=start.device, dtype=start.dtype) + 0.5) / (bins * each)
    return start[:, None] + at * length[:, None]


def _bilinear(input: Tensor, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """[n, C, rows, columns]: values between pixels; nothing more than a pixel outside the image."""
    height, width = input.shape[2:]
    inside = ((y >= -1) & (y <= height))[:, :, None] & ((x >= -1) & (x <= width))[:, None, :]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    y0, x0 = y.floor().long(), x.floor().long()
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    wy, wx = (y - y0)[:, None, :, None], (x - x0)[:, None, None, :]

    def at(rows: Tensor, columns: Tensor) -> Tensor:
        return input.permute(0, 2, 3, 1)[images[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(3, 1)

    top = at(y0, x0) * (1 - wx) + at(y0, x1) * wx
    bottom = at(y1, x0) * (1 - wx) + at(y1, x1) * wx
    return (top * (1 - wy) + bottom * wy) * inside[:, None]


def _edges(start: int, length: int, bins: int, limit: int) -> list[tuple[int, int]]:
    """Where bins begin and end, cut to the image: floor and ceiling, so that neighbours may share a pixel."""
    edges = [(start + i * length // bins, start - (-(i + 1) * length // bins)) for i in range(bins)]
    return [(min(max(a, 0), limit), min(max(b, 0), limit)) for a, b in edges]


def _check_boxes(name: str, boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != _CORNERS:
        raise ValueError(f"The argument {name} must be boxes [n, 4], but has shape {list(boxes.shape)}.")


def _check_regions(input: Tensor, boxes: Tensor) -> None:
    if input.dim() != 4:
        raise ValueError(f"The argument input must be [N, C, H, W], but has shape {list(input.shape)}.")
    if boxes.dim() != 2 or boxes.shape[1] != 1 + _CORNERS:
        raise ValueError(f"The argument boxes must be regions [n, 5], but has shape {list(boxes.shape)}.")
