"""Boxes and regions: overlap, non-maximum suppression, RoI pooling and RoI align. torchvision's names and results.

A box is left, top, right, bottom in pixels. The functions are short compositions of torch's operators, so they run
wherever torch does and have its gradients. What loops over values, suppression and RoI pooling, is an operator, so that
torch.export follows what calls it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

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
    return _nms(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` among the boxes of the same group `idxs` (a class, say), all groups at once."""
    return _nms(boxes, scores, idxs, iou_threshold)


@torch.library.custom_op("fastconv::nms", mutates_args=())
def _nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    """A loop over blocks of boxes whose overlaps are known."""
    _check_boxes("boxes", boxes)
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"Every box needs one score: boxes are {list(boxes.shape)}, scores {list(scores.shape)}.")
    if idxs is not None and len(boxes):
        apart = boxes.max() - boxes.min() + 1  # groups moved so far from each other that they do not meet
        boxes = boxes + (idxs.to(boxes) * apart)[:, None]
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


@_nms.register_fake
def _(boxes, scores, idxs, iou_threshold):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


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
    return _roi_pool(input, boxes.detach(), rows, columns, spatial_scale)


@torch.library.custom_op("fastconv::roi_pool", mutates_args=())
def _roi_pool(input: Tensor, boxes: Tensor, rows: int, columns: int, spatial_scale: float) -> Tensor:
    """A loop over the regions."""
    pooled = input.new_zeros(len(boxes), input.shape[1], rows, columns)
    for own, image, window in _windows(input, boxes, spatial_scale):
        pooled[own] = F.adaptive_max_pool2d(window.read(input[image]), (rows, columns))
    return pooled.masked_fill_(pooled == -math.inf, 0)


@_roi_pool.register_fake
def _(input, boxes, rows, columns, spatial_scale):
    return input.new_empty(boxes.shape[0], input.shape[1], rows, columns)


@torch.library.custom_op("fastconv::roi_pool_dgrad", mutates_args=())
def _roi_pool_dgrad(dy: Tensor, input: Tensor, boxes: Tensor, spatial_scale: float) -> Tensor:
    """The gradient of `input`: every bin's goes to its maximum."""
    dx = torch.zeros_like(input)
    for own, image, window in _windows(input, boxes, spatial_scale):
        values = window.read(input[image])
        pooled, places = F.adaptive_max_pool2d(values, dy.shape[2:], return_indices=True)
        gradient = dy[own].masked_fill(pooled == -math.inf, 0)
        window.add(dx[image], torch.ops.aten.adaptive_max_pool2d_backward(gradient, values, places))
    return dx


@_roi_pool_dgrad.register_fake
def _(dy, input, boxes, spatial_scale):
    return torch.empty_like(input)


def _keep_regions(ctx, inputs: tuple, output: Tensor) -> None:
    input, boxes, _, _, ctx.spatial_scale = inputs
    ctx.save_for_backward(input, boxes)


@partial(_roi_pool.register_autograd, setup_context=_keep_regions)
def _(ctx, dy: Tensor):
    return _roi_pool_dgrad(dy, *ctx.saved_tensors, ctx.spatial_scale), None, None, None, None


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
    return torch.stack([boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)], dim=-1).flatten(-2)


class _Window(NamedTuple):
    """A region in whole pixels: what lies of it in a map, and how much does not, left, right, above and below."""

    rows: slice
    columns: slice
    outside: tuple[int, int, int, int]

    def read(self, maps: Tensor) -> Tensor:
        """[C, H, W] -> the region, with nothing, -inf, outside of the map."""
        inside = maps[:, self.rows, self.columns]
        return F.pad(inside, self.outside, value=-math.inf) if any(self.outside) else inside

    def add(self, maps: Tensor, values: Tensor) -> None:
        """Adds to [C, H, W] in place what is given for the region."""
        maps[:, self.rows, self.columns] += F.pad(values, [-side for side in self.outside])


def _windows(maps: Tensor, boxes: Tensor, spatial_scale: float) -> Iterator[tuple[int, int, _Window]]:
    """The number, image and window of every region [n, 5] that touches the maps [N, C, H, W]."""
    height, width = maps.shape[2:]
    corners = torch.floor(boxes[:, 1:] * spatial_scale + 0.5).long()  # C's round for what is not negative
    images = boxes[:, 0].long().tolist()
    for number, (image, (left, top, right, bottom)) in enumerate(zip(images, corners.tolist(), strict=True)):
        right, bottom = max(right, left) + 1, max(bottom, top) + 1
        rows, columns = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
        if rows.start < rows.stop and columns.start < columns.stop:
            outside = columns.start - left, right - columns.stop, rows.start - top, bottom - rows.stop
            yield number, image, _Window(rows, columns, outside)


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
    return near.view(-1, bins, at.shape[1] // bins, side).mean(2)


def _products(input: Tensor, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[n, C, bins, bins] of maps [N, C, H, W]: sums over all pixels by the shares [n, bins, H] and [n, bins, W]."""
    result = rows.new_zeros(rows.shape[0], input.shape[1], rows.shape[1], columns.shape[1])
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
