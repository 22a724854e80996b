"""One start of one Triton kernel, as a value: it runs, or is compiled ahead of time for any architecture."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from fastconv.kernels.triton import configure
from fastconv.kernels.triton.configure import Slab, Tile
from fastconv.problem import Problem

# Sizes that never make a kernel of their own: every value runs the same code.
SIZES = ("images", "height", "width", "out_height", "out_width", "pad_h", "pad_w", "slabs", "alpha")
INTERPRETED_ARCHITECTURE = 90  # whose tiles the interpreter runs
MOST_BLOCKS = 2**31 - 1
_capturing = threading.Lock()  # Triton's hook is one for all threads
WARP_SIZE = 32


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid and its arguments. warps, stages: as Triton's num_warps and num_stages."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any] = field(repr=False)
    warps: int = 4
    stages: int = 1

    def __call__(self) -> None:
        """Starts it on the current stream of its tensors' device (interpreted: runs it at once)."""
        device = next(t.device for t in self.arguments.values() if isinstance(t, Tensor))
        if 0 in self.grid:
            return
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext(), self._compiles(device):
            self.kernel[self.grid](**self.arguments, num_warps=self.warps, num_stages=self.stages)

    @contextmanager
    def _compiles(self, device: torch.device) -> Iterator[None]:
        """Lets Triton compile the kernel, but not while a CUDA graph is captured: its time and its calls of the driver
        do not belong there. RuntimeError then, unless an earlier call has compiled it.
        """
        if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            yield
            return

        def refuse(**_: Any) -> None:
            name = self.kernel.__module__.rsplit(".", 1)[-1]
            raise RuntimeError(
                f"The Triton kernel {name} is not compiled yet for these arguments while a CUDA graph is captured: "
                "run the same call once before the capture."
            )

        with _capturing:
            before, triton.knobs.runtime.jit_cache_hook = triton.knobs.runtime.jit_cache_hook, refuse
            try:
                yield
            finally:
                triton.knobs.runtime.jit_cache_hook = before

    def compile(self, architecture: int) -> Any:
        """Triton's CompiledKernel for ``architecture`` (90: sm_90), specialised as a run with these arguments would be.

        Tensors may be on the meta device: they count as aligned. Needs no GPU.
        """
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, make_backend
        from triton.runtime.jit import create_function_from_signature

        target = GPUTarget("cuda", architecture, WARP_SIZE)
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        options = {"num_warps": self.warps, "num_stages": self.stages}
        bound, specialization, _ = bind(**self.arguments, debug=False, **options)
        _, signature, constants, attributes = self.kernel._pack_args(backend, options, bound, specialization, None)
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options)


def architecture_of(tensor: Tensor) -> int:
    """The tensor's architecture, 90 for compute capability 9.0; without a GPU the one whose tiles are interpreted."""
    if tensor.device.type != "cuda":
        return INTERPRETED_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def too_large(problem: Problem) -> str | None:
    """A refusal where pixels or blocks would not fit the 32-bit numbers that Triton gives its programs."""
    h, w = problem.h, problem.w
    most = problem.n * max(h.size * w.size, h.out * w.out)
    if most > MOST_BLOCKS // 2:
        return f"It numbers pixels with 32 bits, but the problem has {most} of them."
    return None


def written(problem: Problem, like: Tensor, shape: tuple[int, ...], out: Tensor | None) -> Tensor:
    """The view of ``shape`` a kernel writes: of ``out``, whose channel slice it is, or of a new tensor in the problem's
    layout. ValueError when a slice is asked for without the buffer it is a slice of.
    """
    if out is None:
        if problem.out_channels:
            raise ValueError(f"{problem} writes a slice of {problem.out_channels} channels and needs the buffer: out.")
        format = torch.channels_last if problem.layout == "nhwc" else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=format)
    return out.narrow(1, problem.out_offset, shape[1]) if problem.out_channels else out


def window_arguments(problem: Problem) -> dict[str, Any]:
    """Sizes and constants of the sliding window, as the kernels name them."""
    h, w = problem.h, problem.w
    return {
        "images": problem.n,
        "height": h.size,
        "width": w.size,
        "out_height": h.out,
        "out_width": w.out,
        "pad_h": h.pad_lo,
        "pad_w": w.pad_lo,
        "R": h.window,
        "S": w.window,
        "STRIDE_H": h.stride,
        "STRIDE_W": w.stride,
        "DILATION_H": h.dilation,
        "DILATION_W": w.dilation,
        "CHANNELS_LAST": problem.layout == "nhwc",
    }


def epilogue_arguments(
    problem: Problem, y: Tensor, channels: int, bias: Tensor | None, residual: Tensor | None
) -> dict[str, Any]:
    """What ``common.finish`` applies to a result of ``channels``; absent operands are pointers that nobody reads."""
    return {
        "bias": y if bias is None else bias,
        "residual": y if residual is None else residual,
        "out": y,
        "out_channels": problem.out_channels or channels,
        "alpha": float(problem.alpha),
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "ACTIVATION": problem.activation,
    }


def slab_arguments(problem: Problem, slab: Slab) -> dict[str, Any]:
    """Channels and filters of a slab and of all, as the kernels of implicit products name them."""
    several = slab.groups > 1
    return {
        "slabs": slab.count,
        "channels": slab.channels,
        "filters": slab.filters,
        "all_channels": problem.c,
        "all_filters": problem.k,
        "GROUP_CHANNELS": problem.c // problem.groups if several else 0,
        "GROUP_FILTERS": problem.k // problem.groups if several else 0,
    }


def matrix_arguments(problem: Problem, slab: Slab, channels: int, tile: Tile) -> dict[str, Any]:
    """Tile of an implicit product whose depth is taps and ``channels`` of a slab."""
    return {
        "FLAT": configure.flat(channels, tile.k),
        "EVEN": channels % tile.k == 0 and problem.groups % slab.groups == 0,
        "PRECISION": precision(problem),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
    }


def precision(problem: Problem) -> str:
    """Triton's name of how float operands are multiplied: exactly, unless the problem allows TF32."""
    return "tf32" if problem.dtype == "tf32" else "ieee"


def filter_strides(w: Tensor) -> dict[str, int]:
    """Strides of a filter as the kernels name them."""
    return dict(zip(("w_k", "w_c", "w_r", "w_s"), w.stride(), strict=True))
