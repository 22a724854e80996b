"""Boxes and regions: overlap, non-maximum suppression, RoI pooling and RoI align. torchvision's names and results.

A box is left, top, right, bottom in pixels. The functions are short compositions of torch's operators, so they run
wherever torch does and have its gradients; a loop suppresses, over blocks of boxes whose overlaps are known.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_CORNERS = 4
_BLOCK = 1024  # boxes whose overlaps with each other are computed at once
_SMALL_MAP = 64 * 64  # pixels up to which products with all of them are less work than gathering four a sample
_LARGEST_GROWTH = math.log(1000 / 16)  # of a side in `decode_boxes`; torchvision's


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
    boxes = boxes[order]
    stays = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for block in range(0, len(boxes), _BLOCK):
        here, behind = slice(block, block + _BLOCK), slice(block + _BLOCK, None)
        own = stays[here]
        over = box_iou(boxes[here], boxes[here]) > iou_threshold
        for index in range(len(own)):
            if own[index]:
                own[index + 1 :] &= ~over[index, index + 1 :]
        stays[behind] &= ~(box_iou(boxes[here][own], boxes[behind]) > iou_threshold).any(0)
    return order[stays]


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
    if input.shape[2] * input.shape[3] <= _SMALL_MAP:
        shares = (
            _shares(at, side, each) for at, side, each in ((y, input.shape[2], rows), (x, input.shape[3], columns))
        )
        return _products(input, boxes[:, 0].long(), *shares)
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
    pooled = []
    for image, (left, top, right, bottom) in zip(boxes[:, 0].long().tolist(), corners.tolist(), strict=True):
        right, bottom = max(right, left) + 1, max(bottom, top) + 1
        pooled.append(F.adaptive_max_pool2d(_window(input[image], left, top, right, bottom), (rows, columns)))
    if not pooled:
        return input.new_zeros(0, input.shape[1], rows, columns)
    result = torch.stack(pooled)
    return result.masked_fill(result == -math.inf, 0)


def encode_boxes(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """How `boxes` [..., 4] differ from `anchors` [..., 4]: shifts of the center in sides, logarithms of the sides.

    Girshick et al. 2014, appendix C. `weights` multiply the four numbers, which brings them near a deviation of 1.
    """
    size, own = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + 0.5 * own - anchors[..., :2] - 0.5 * size) / size
    return torch.cat([shift, (own / size).log()], dim=-1) * boxes.new_tensor(weights)


def decode_boxes(codes: Tensor, anchors: Tensor, weights: tuple[float, ...] = (1, 1, 1, 1)) -> Tensor:
    """The boxes [..., 4] that differ from `anchors` by `codes`; sides grow by a factor of 62.5 at most."""
    codes = codes / codes.new_tensor(weights)
    size = anchors[..., 2:] - anchors[..., :2]
    center = codes[..., :2] * size + anchors[..., :2] + 0.5 * size
    half = 0.5 * codes[..., 2:].clamp(max=_LARGEST_GROWTH).exp() * size
    return torch.cat([center - half, center + half], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """What lies of the boxes [..., 4] in an image of `size` (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _window(maps: Tensor, left: int, top: int, right: int, bottom: int) -> Tensor:
    """[C, bottom - top, right - left] of [C, H, W], with nothing, -inf, outside of it."""
    height, width = maps.shape[1:]
    low, high = [min(max(v, 0), s) for v, s in ((left, width), (top, height))], [min(right, width), min(bottom, height)]
    inside = maps[:, low[1] : max(high[1], low[1]), low[0] : max(high[0], low[0])]
    if inside.shape[1:] == (bottom - top, right - left):
        return inside
    if not inside.numel():
        return maps.new_full((len(maps), bottom - top, right - left), -math.inf)
    return F.pad(inside, (low[0] - left, right - high[0], low[1] - top, bottom - high[1]), value=-math.inf)


def _common(a: Tensor, b: Tensor) -> Tensor:
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def _samples(start: Tensor, length: Tensor, bins: int, each: int) -> Tensor:
    """[n, bins * each]: the places of samples, evenly over the length."""
    at = (torch.arange(bins * each, device=start.device, dtype=start.dtype) + 0.5) / (bins * each)
    return start[:, None] + at * length[:, None]


def _shares(at: Tensor, side: int, bins: int) -> Tensor:
    """[n, bins, side]: how much every pixel of an axis counts in the mean of every bin's samples."""
    inside = (at >= -1) & (at <= side)
    pixels = torch.arange(side, device=at.device)
    near = (1 - (at.clamp(0, side - 1)[..., None] - pixels).abs()).clamp(min=0) * inside[..., None]
    return near.view(len(at), bins, at.shape[1] // bins, side).mean(2)


def _products(input: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[n, C, bins, bins] of maps [N, C, H, W]: sums over all pixels by the shares [n, bins, H] and [n, bins, W]."""
    result = rows.new_zeros(len(rows), input.shape[1], rows.shape[1], columns.shape[1])
    for number, maps in enumerate(input):
        own = (images == number).nonzero()[:, 0]
        down = torch.einsum("nph,chw->npcw", rows[own], maps.to(rows.dtype))
        result = result.index_copy(0, own, torch.einsum("npcw,nqw->ncpq", down, columns[own]))
    return result


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


def _check_boxes(name: str, boxes: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != _CORNERS:
        raise ValueError(f"The argument {name} must be boxes [n, 4], but has shape {list(boxes.shape)}.")


def _check_regions(input: Tensor, boxes: Tensor) -> None:
    if input.dim() != 4:
        raise ValueError(f"The argument input must be [N, C, H, W], but has shape {list(input.shape)}.")
    if boxes.dim() != 2 or boxes.shape[1] != 1 + _CORNERS:
        raise ValueError(f"The argument boxes must be regions [n, 5], but has shape {list(boxes.shape)}.")
