"""Boxes of pixels that a tensor descriptor copies: the view of a map that a tap at any stride reads in one copy."""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.launch import too_large
from fastconv.problem import Problem

ALIGNED = 16  # bytes, of rows and starts
DESCRIPTORS = 90  # the first architecture whose descriptors are copies


def refuses(problem: Problem) -> str | None:
    """What no kernel takes whose boxes are pixels of a map."""
    h, v = problem.h, problem.w
    if sentence := too_large(problem):
        return sentence
    if h.size % h.stride or v.size % v.stride:
        return f"It needs strides that divide the map, but {h.stride}x{v.stride} does not divide {h.size}x{v.size}."
    if problem.groups > 1:
        return f"It takes one group, but the problem has {problem.groups}."
    return refuses_pixels(problem)


def refuses_pixels(problem: Problem) -> str | None:
    """What no kernel takes whose descriptors have rows of channels."""
    if problem.layout != "nhwc":
        return f"It reads whole pixels, but the layout is {problem.layout}."
    if problem.dtype == "f32":
        return "It multiplies by matrix instructions, which are not exact in f32."
    size = configure.SIZE[problem.dtype]
    if problem.c * size % ALIGNED or (problem.pass_ != "fprop" and problem.k * size % ALIGNED):
        return f"It copies rows of whole {ALIGNED} bytes, but C={problem.c} and K={problem.k} of {size} bytes each."
    return None


def copies(tensors: tuple[Tensor, ...], architecture: int) -> bool:
    """Whether descriptors of these tensors are copies, and allowed."""
    return architecture >= DESCRIPTORS and all(tensor.data_ptr() % ALIGNED == 0 for tensor in tensors)


def descriptor(map: Tensor, stride: tuple[int, int], box: list[int]) -> TensorDescriptor:
    """A dense channels_last map [N, C, H, W] as [N, H / u, u, W / v, v·C] of a stride u x v, which divides it.

    box: images, rows, columns and channels that one copy brings.
    """
    n, c, height, width = map.shape
    u, v = stride
    images, rows, columns, channels = box
    return TensorDescriptor(
        map,
        [n, height // u, u, width // v, v * c],
        [height * width * c, u * width * c, width * c, v * c, 1],
        [images, rows, 1, columns, channels],
    )


@triton.jit
def load_tap(
    source,
    tap,
    image,
    p,
    q,
    channel,
    channels,
    pad_h,
    pad_w,
    S: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
):
    """What a tap reads for the box of output positions that begins at image, p and q: one copy from a ``descriptor``.

    Outside the map it is zero. channel: the first of those copied; channels: of a pixel.
    """
    # Counted from so far before the map that nothing divided is negative.
    before_h = tl.maximum(pad_h, 0)
    before_w = tl.maximum(pad_w, 0)
    h = tap // S * DILATION_H - pad_h + before_h * STRIDE_H
    v = tap % S * DILATION_W - pad_w + before_w * STRIDE_W
    return source.load(
        [
            image,
            p - before_h + h // STRIDE_H,
            h % STRIDE_H,
            q - before_w + v // STRIDE_W,
            v % STRIDE_W * channels + channel,
        ]
    )
