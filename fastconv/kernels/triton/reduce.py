"""The second step of every filter gradient: partial sums of the pieces, added in the order of their numbers.

partial[pieces, rows] in float becomes out[rows] in the problem's type, rows through the filter's strides. The order is
fixed, so the bits do not depend on which piece was ready first. Bytes: the partial sums once. It has not run on a GPU
yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import narrow
from fastconv.kernels.triton.launch import Launch

BLOCK = 256  # elements of a filter


@triton.jit(do_not_specialize=["pieces"])
def kernel(
    partial, out, pieces, filters, channels, w_k, w_c, w_r, w_s, R: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr
):
    """partial: [pieces, filters, R, S, channels]; channels: of one group."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.cast(filters, tl.int64) * R * S * channels
    inside = row < rows
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for piece in range(pieces):
        sums += tl.load(partial + tl.cast(piece, tl.int64) * rows + row, mask=inside, other=0.0)
    channel = row % channels
    tap = row // channels % (R * S)
    filter = row // channels // (R * S)
    places = filter * w_k + channel * w_c + tap // S * w_r + tap % S * w_s
    tl.store(out + places, narrow(sums, out.dtype.element_ty), mask=inside)


def launch(partial: Tensor, dw: Tensor, window: tuple[int, int], strides: dict[str, int]) -> Launch:
    """partial: [pieces, K, R, S, C / groups]; strides: those of ``dw`` by name."""
    pieces, filters, channels = partial.shape[0], dw.shape[0], dw.shape[1]
    arguments = {
        "partial": partial,
        "out": dw,
        "pieces": pieces,
        "filters": filters,
        "channels": channels,
        **strides,
        "R": window[0],
        "S": window[1],
        "BLOCK": BLOCK,
    }
    return Launch(kernel, (configure.cdiv(dw.numel(), BLOCK),), arguments)
