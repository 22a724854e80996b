"""The main loop of the implicit matrix products, shared by fprop and dgrad.

Rows of the product are pixels of what is written, columns its channels, depth is (tap, channel of what is read).
Nothing is unfolded: a tile [BLOCK_M, BLOCK_K] of the source is loaded by address, and pixels of the padding are masked
to zero. Depth comes in one of two orders: channels in blocks with one tap each (FLAT false: a mask per pixel, vectors
along the channels), or taps and channels numbered in one row (FLAT true: a mask per element, no depth wasted on few
channels).
"""

import triton
import triton.language as tl

from fastconv.kernels.triton import prologue
from fastconv.kernels.triton.common import product


@triton.jit
def accumulate(
    source,
    filter,
    image,
    row,
    column,
    pixel_inside,
    height,
    width,
    total_channels,
    first_channel,
    channels,
    column_offsets,
    column_inside,
    column_group,
    filter_depth_stride,
    filter_r_stride,
    filter_s_stride,
    first_r,
    first_s,
    taps_r,
    taps_s,
    norm_weight,
    norm_bias,
    mean,
    variance,
    eps,
    norm_alpha,
    ROW_STEP: tl.constexpr,
    COLUMN_STEP: tl.constexpr,
    R_STEP: tl.constexpr,
    S_STEP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NORM: tl.constexpr,
    NORM_WEIGHT: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    NORM_ACTIVATION: tl.constexpr,
    GROUP: tl.constexpr,
    FLAT: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The sums of a tile [BLOCK_M, BLOCK_N] in float.

    image, row, column: [BLOCK_M], where each pixel meets tap (0, 0); tap (t, u) lies ROW_STEP · t, COLUMN_STEP · u
    further and is multiplied by the filter's (first_r + R_STEP · t, first_s + S_STEP · u).
    column_offsets: [BLOCK_N], of the filter's columns. EVEN: channels are a multiple of BLOCK_K.
    GROUP: channels of a group where several share the tile, else 0. column_group: [BLOCK_N], a column's group; other
    groups' channels have no filter there.
    NORM: the source is normalised on the way (``prologue``).
    """
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    lines = image.to(tl.int64)[:, None]
    blocks = tl.cdiv(channels, BLOCK_K)
    depth = taps_r * taps_s * channels
    steps = tl.cdiv(depth, BLOCK_K) if FLAT else taps_r * taps_s * blocks
    plane = tl.cast(height, tl.int64) * width
    for step in range(steps):
        if FLAT:
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            tap = k // channels
            channel = k % channels
            k_inside = k < depth
        else:
            tap = step // blocks
            channel = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
            k_inside = channel < channels
        t = tap // taps_s
        u = tap % taps_s
        if FLAT:
            y = row[:, None] + (t * ROW_STEP)[None, :]
            x = column[:, None] + (u * COLUMN_STEP)[None, :]
        else:
            y = (row + t * ROW_STEP)[:, None]
            x = (column + u * COLUMN_STEP)[:, None]
        inside = pixel_inside[:, None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if FLAT or not EVEN:
            source_inside = inside & k_inside[None, :]
            filter_inside = k_inside[:, None] & column_inside[None, :]
        else:
            source_inside = inside
            filter_inside = column_inside[None, :]
        if GROUP:
            filter_inside = filter_inside & ((channel // GROUP)[:, None] == column_group[None, :])
        if CHANNELS_LAST:
            places = ((lines * height + y) * width + x) * total_channels + (first_channel + channel)[None, :]
        else:
            places = (lines * total_channels + (first_channel + channel)[None, :]) * plane + y * width + x
        a = tl.load(source + places, mask=source_inside, other=0.0)
        if NORM:
            a = prologue.normalized(
                a,
                norm_weight,
                norm_bias,
                mean,
                variance,
                first_channel + channel,
                channel < channels,
                eps,
                norm_alpha,
                NORM_WEIGHT,
                NORM_BIAS,
                NORM_ACTIVATION,
            )
            # The padding is around the norm's result: zero there, and not what the norm makes of zero.
            a = tl.where(source_inside, a, tl.zeros_like(a))
        taps = (first_r + t * R_STEP).to(tl.int64) * filter_r_stride + (first_s + u * S_STEP) * filter_s_stride
        rows = taps + channel.to(tl.int64) * filter_depth_stride
        b = tl.load(filter + rows[:, None] + column_offsets[None, :], mask=filter_inside, other=0.0)
        sums = product(a, b, sums, PRECISION)
    return sums
