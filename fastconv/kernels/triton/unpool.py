"""Max unpooling, forward and backward.

Forward a block owns whole planes of its channels: it clears them, then walks over the inputs in order and stores each
where its index says. One lane stores everything of its plane, so of two equal indices the last wins in every run,
where PyTorch's own scatter is a race. Backward gathers: dx = dy[index]. Bytes: y twice, x and the index once; backward
dy, the index and dx once.

Forward loses by far where N · C is small, as a plane is one lane's work, and in NCHW, whose planes lie far apart. It
has not run on a GPU yet: it is interpreted and compiled ahead of time.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.common import narrow
from fastconv.kernels.triton.launch import Launch, too_large, written
from fastconv.problem import Problem

WARPS = 1
GATHER_WARPS = 4
CHANNELS = 32  # of a block: a lane each
ELEMENTS = 1024  # of a gathering block


def refuses(problem: Problem) -> str | None:
    if problem.out_channels:
        return f"It writes dense results, not {problem.c} of a buffer's {problem.out_channels} channels."
    return too_large(problem)


@triton.jit(do_not_specialize=["inputs", "outputs"])
def scatter(x, index, y, channels, inputs, outputs, CHANNELS_LAST: tl.constexpr, BLOCK_N: tl.constexpr):
    """inputs, outputs: pixels of a plane."""
    tiles = tl.cdiv(channels, BLOCK_N)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = channel < channels
    if CHANNELS_LAST:
        first_in = image * inputs * channels + channel
        first_out = image * outputs * channels + channel
        step = tl.cast(channels, tl.int64)
    else:
        first_in = (image * channels + channel) * inputs
        first_out = (image * channels + channel) * outputs
        step = tl.cast(1, tl.int64)
    nothing = narrow(tl.zeros((BLOCK_N,), dtype=tl.float32), y.dtype.element_ty)
    for o in range(outputs):
        tl.store(y + first_out + o * step, nothing, mask=inside)
    tl.debug_barrier()  # the compiler may give a plane's two kinds of stores to different lanes
    for i in range(inputs):
        value = tl.load(x + first_in + i * step, mask=inside, other=0.0)
        place = tl.load(index + first_in + i * step, mask=inside, other=-1)
        tl.store(y + first_out + place * step, value, mask=inside & (place >= 0) & (place < outputs))


@triton.jit(do_not_specialize=["inputs", "outputs"])
def gather(dy, index, dx, elements, channels, inputs, outputs, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr):
    """elements: of the index. inputs, outputs: pixels of a plane."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < elements
    place = tl.load(index + i, mask=inside, other=-1)
    if CHANNELS_LAST:
        source = (i // channels // inputs * outputs + place) * channels + i % channels
    else:
        source = i // inputs * outputs + place
    tl.store(dx + i, tl.load(dy + source, mask=inside & (place >= 0) & (place < outputs), other=0.0), mask=inside)


def plan(
    problem: Problem,
    *,
    index: Tensor,
    x: Tensor | None = None,
    y: Tensor | None = None,
    out: Tensor | None = None,
    architecture: int | None = None,
) -> tuple[Tensor, list[Launch]]:
    """The result, and the start that writes it."""
    h, v = problem.h, problem.w
    sizes = {
        "channels": problem.c,
        "inputs": h.size * v.size,
        "outputs": h.out * v.out,
        "CHANNELS_LAST": problem.layout == "nhwc",
    }
    if problem.pass_ == "fprop":
        result = written(problem, x, (problem.n, problem.c, h.out, v.out), out)
        grid = (problem.n * configure.cdiv(problem.c, CHANNELS),)
        arguments = {"x": x, "index": index, "y": result, **sizes, "BLOCK_N": CHANNELS}
        return result, [Launch(scatter, grid, arguments, WARPS)]
    result = written(problem, y, (problem.n, problem.c, h.size, v.size), out)
    arguments = {"dy": y, "index": index, "dx": result, "elements": index.numel(), **sizes, "BLOCK": ELEMENTS}
    return result, [Launch(gather, (configure.cdiv(index.numel(), ELEMENTS),), arguments, GATHER_WARPS)]
