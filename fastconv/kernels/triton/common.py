"""What the kernels share: numbers of both widths, pixels, phases of a stride, and the epilogue.

Interpreted, bfloat16 lies in 16-bit integers: Triton's interpreter multiplies those as integers and cuts off where the
chip rounds. ``widen`` and ``narrow`` do both by bits there, and are one instruction on the chip.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
HALF_SQRT2 = tl.constexpr(0.7071067811865476)
# gelu by tanh is x·sigmoid(2u): -2u is x times GELU_LINEAR + GELU_CUBIC·x².
GELU_LINEAR = tl.constexpr(-1.5957691216057308)
GELU_CUBIC = tl.constexpr(-1.5957691216057308 * 0.044715)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)
SIX = tl.constexpr(6.0)
THREE = tl.constexpr(3.0)
BFLOAT_SHIFT = tl.constexpr(16)
BFLOAT_HALF = tl.constexpr(0x7FFF)
BFLOAT_NAN = tl.constexpr(0x7FC0)


@triton.jit
def widen(x):
    """Any storage type as float, exactly."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32) << BFLOAT_SHIFT
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, TYPE: tl.constexpr):
    """Float in a storage type, rounded to nearest, ties to even."""
    if INTERPRETED and tl.bfloat16 == TYPE:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + BFLOAT_HALF + ((bits >> BFLOAT_SHIFT) & 1)) >> BFLOAT_SHIFT
        rounded = tl.where(x != x, BFLOAT_NAN, rounded)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(TYPE)


@triton.jit
def product(a, b, sums, PRECISION: tl.constexpr):
    """sums + a · b in float, by matrix instructions where the type has them."""
    if INTERPRETED and a.dtype == tl.bfloat16:
        return tl.dot(widen(a), widen(b), sums, input_precision=PRECISION)
    else:
        return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def rows_and_columns(block, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which pixels and channels the block-th tile [BLOCK_M, BLOCK_N] has; those that share pixels follow each other."""
    tiles_n = tl.cdiv(columns, BLOCK_N)
    row = block // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    return row, block % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def image_row_column(pixel, height, width):
    """Pixel numbers of a batch of maps as image, row and column."""
    line = pixel // width
    return line // height, line % height, pixel % width


@triton.jit
def offsets(image, row, column, channel, height, width, channels, CHANNELS_LAST: tl.constexpr):
    """64-bit offsets of elements in a dense tensor of ``channels``; pixels and channels broadcast."""
    if CHANNELS_LAST:
        return ((image.to(tl.int64) * height + row) * width + column) * channels + channel
    else:
        plane = image.to(tl.int64) * channels + channel
        return (plane * height + row) * width + column


@triton.jit
def phase_taps(phase, pad, WINDOW: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, GCD: tl.constexpr):
    """The taps of a strided window that reach the input positions ``phase``, phase + STRIDE, ...: first, count, origin.

    Tap first + t · (STRIDE / GCD) of input position phase + STRIDE · i stands at output position
    origin + i - t · (DILATION / GCD). GCD: the greatest common divisor of STRIDE and DILATION.
    """
    STEP: tl.constexpr = STRIDE // GCD
    first = tl.cast(WINDOW, tl.int32)
    for r in tl.static_range(STEP):
        hit = (phase + pad + WINDOW * STRIDE * DILATION - r * DILATION) % STRIDE == 0
        first = tl.where(hit, r, first)
    count = (WINDOW - first + STEP - 1) // STEP
    # Exact where there is a tap; rounded somehow, and never used, where there is none.
    origin = (phase + pad - first * DILATION) // STRIDE
    return first, count, origin


@triton.jit
def activate(x, alpha, ACTIVATION: tl.constexpr):
    """The problem's activation in float; NaN stays NaN."""
    if ACTIVATION == "relu":
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "relu6":
        return tl.where(x < 0, 0.0, tl.where(x > SIX, SIX, x))
    elif ACTIVATION == "leaky_relu":
        return tl.where(x > 0, x, x * alpha)
    elif ACTIVATION == "silu":
        return x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "hardswish":
        shifted = x + THREE
        return x * tl.where(shifted < 0, 0.0, tl.where(shifted > SIX, SIX, shifted)) / SIX
    elif ACTIVATION == "hardsigmoid":
        shifted = x + THREE
        return tl.where(shifted < 0, 0.0, tl.where(shifted > SIX, SIX, shifted)) / SIX
    elif ACTIVATION == "sigmoid":
        return 1.0 / (1.0 + tl.exp(-x))
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * HALF_SQRT2))
    elif ACTIVATION == "gelutanh":
        return x / (1.0 + tl.exp(x * (GELU_LINEAR + GELU_CUBIC * x * x)))
    else:
        return x


@triton.jit
def activation_gradient(d, x, alpha, ACTIVATION: tl.constexpr):
    """d times the derivative of ``activate`` at x, in float; of relu, relu6 and leaky_relu x may be the result too."""
    if ACTIVATION == "relu":
        return tl.where(x <= 0, 0.0, d)
    elif ACTIVATION == "relu6":
        return tl.where((x <= 0) | (x >= SIX), 0.0, d)
    elif ACTIVATION == "leaky_relu":
        return tl.where(x > 0, d, d * alpha)
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-x))
        return d * (s * (1.0 + x * (1.0 - s)))
    elif ACTIVATION == "hardswish":
        return tl.where(x <= -THREE, 0.0, tl.where(x < THREE, d * (x / THREE + 0.5), d))
    elif ACTIVATION == "hardsigmoid":
        return tl.where((x <= -THREE) | (x >= THREE), 0.0, d / SIX)
    elif ACTIVATION == "sigmoid":
        s = 1.0 / (1.0 + tl.exp(-x))
        return d * (s * (1.0 - s))
    elif ACTIVATION == "gelu":
        density = INVERSE_SQRT_2PI * tl.exp(-0.5 * x * x)
        return d * (0.5 * (1.0 + tl.erf(x * HALF_SQRT2)) + x * density)
    elif ACTIVATION == "gelutanh":
        s = 1.0 / (1.0 + tl.exp(x * (GELU_LINEAR + GELU_CUBIC * x * x)))
        return d * (s - x * s * (1.0 - s) * (GELU_LINEAR + 3.0 * GELU_CUBIC * x * x))
    else:
        return d


@triton.jit
def inverse_deviation(variance, channel, inside, eps):
    """1 / sqrt(variance + eps) of some channels."""
    return tl.math.div_rn(1.0, tl.math.sqrt_rn(tl.load(variance + channel, mask=inside, other=1.0) + eps))


@triton.jit
def normalize(
    value,
    w,
    bias,
    mean,
    variance,
    channel,
    inside,
    eps,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    MEAN: tl.constexpr,
):
    """A batch norm of a tile [pixels, channels], all in float; inside: of the channels."""
    if MEAN:
        value -= tl.load(mean + channel, mask=inside, other=0.0)[None, :]
    scale = inverse_deviation(variance, channel, inside, eps)
    if WEIGHT:
        scale *= tl.load(w + channel, mask=inside, other=0.0)
    value *= scale[None, :]
    if BIAS:
        value += tl.load(bias + channel, mask=inside, other=0.0)[None, :]
    return value


@triton.jit
def finish(
    sums,
    out,
    bias,
    residual,
    out_offsets,
    residual_offsets,
    channel,
    inside,
    channel_inside,
    alpha,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """The epilogue of a tile [pixels, channels]: bias, residual and activation in float, one rounding at the store.

    Returns what it stored.
    """
    if BIAS:
        sums += widen(tl.load(bias + channel, mask=channel_inside, other=0.0))[None, :]
    if RESIDUAL:
        sums += widen(tl.load(residual + residual_offsets, mask=inside, other=0.0))
    y = narrow(activate(sums, alpha, ACTIVATION), out.dtype.element_ty)
    tl.store(out + out_offsets, y, mask=inside)
    return y


@triton.jit
def finish_map(
    sums,
    out,
    bias,
    residual,
    image,
    row,
    column,
    channel,
    pixel_inside,
    channel_inside,
    height,
    width,
    channels,
    out_channels,
    alpha,
    CHANNELS_LAST: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """``finish`` at the pixels (image, row, column) of a map of ``channels`` that lie in a buffer of out_channels."""
    image, row, column, channels_of_row = image[:, None], row[:, None], column[:, None], channel[None, :]
    return finish(
        sums,
        out,
        bias,
        residual,
        offsets(image, row, column, channels_of_row, height, width, out_channels, CHANNELS_LAST),
        offsets(image, row, column, channels_of_row, height, width, channels, CHANNELS_LAST),
        channel,
        pixel_inside[:, None] & channel_inside[None, :],
        channel_inside,
        alpha,
        BIAS,
        RESIDUAL,
        ACTIVATION,
    )
