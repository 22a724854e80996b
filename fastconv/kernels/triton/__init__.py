"""Rows for the Triton kernels: one file per kernel, one line in the table below.

They stand behind PyTorch's rows: none has run on a GPU yet, and what is not measured is not preferred. A file needs
Triton, so it is imported when its row is first asked about a tensor on a GPU, and not before.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from torch import Tensor

from fastconv.problem import Problem
from fastconv.registry import Kernel

DEVICES = ("cuda",)
DTYPES = ("f32", "tf32", "f16", "bf16")

# Name, op, pass, file.
TABLE = (
    ("conv2d/fprop_depthwise_triton", "conv2d", "fprop", "dw_map"),
    ("conv2d/dgrad_depthwise_triton", "conv2d", "dgrad", "dw_map"),
    ("conv2d/wgrad_depthwise_triton", "conv2d", "wgrad", "dw_wgrad"),
    ("conv2d/fprop_gemm1x1_triton", "conv2d", "fprop", "conv_gemm1x1"),
    ("conv2d/dgrad_gemm1x1_triton", "conv2d", "dgrad", "conv_gemm1x1"),
    ("conv2d/fprop_persistent1x1_triton", "conv2d", "fprop", "conv_persistent1x1"),
    ("conv2d/dgrad_persistent1x1_triton", "conv2d", "dgrad", "conv_persistent1x1"),
    ("conv2d/fprop_persistent_triton", "conv2d", "fprop", "conv_persistent"),
    ("conv2d/dgrad_persistent_triton", "conv2d", "dgrad", "conv_persistent"),
    ("conv2d/wgrad_boxes_triton", "conv2d", "wgrad", "conv_boxes_wgrad"),
    ("conv2d/fprop_igemm_triton", "conv2d", "fprop", "conv_fprop"),
    ("conv2d/dgrad_igemm_triton", "conv2d", "dgrad", "conv_dgrad"),
    ("conv2d/wgrad_splitk_triton", "conv2d", "wgrad", "conv_wgrad"),
    ("maxpool2d/fprop_window_triton", "maxpool2d", "fprop", "maxpool_fprop"),
    ("maxpool2d/dgrad_window_triton", "maxpool2d", "dgrad", "maxpool_dgrad"),
    ("adaptivemax2d/fprop_window_triton", "adaptivemax2d", "fprop", "maxpool_fprop"),
    ("adaptivemax2d/dgrad_window_triton", "adaptivemax2d", "dgrad", "maxpool_dgrad"),
    ("avgpool2d/fprop_window_triton", "avgpool2d", "fprop", "avgpool"),
    ("avgpool2d/dgrad_window_triton", "avgpool2d", "dgrad", "avgpool"),
    ("adaptiveavg2d/fprop_window_triton", "adaptiveavg2d", "fprop", "avgpool"),
    ("adaptiveavg2d/dgrad_window_triton", "adaptiveavg2d", "dgrad", "avgpool"),
    ("unpool2d/fprop_direct_triton", "unpool2d", "fprop", "unpool"),
    ("unpool2d/dgrad_direct_triton", "unpool2d", "dgrad", "unpool"),
    ("batchnorm2d/fprop_direct_triton", "batchnorm2d", "fprop", "norm_fprop"),
    ("batchnorm2d/dgrad_direct_triton", "batchnorm2d", "dgrad", "norm_grad"),
    ("batchnorm2d/wgrad_direct_triton", "batchnorm2d", "wgrad", "norm_grad"),
)


def rows() -> list[Kernel]:
    """One row per line of the table, in its order."""
    return [
        Kernel(name, op, pass_, DEVICES, partial(_refuses, file), partial(_run, name, file))
        for name, op, pass_, file in TABLE
    ]


def file_of(kernel: Kernel) -> str:
    """The file of one of these rows."""
    return next(file for name, *_, file in TABLE if name == kernel.name)


@cache
def missing() -> str | None:
    """The sentence that refuses everything where Triton is not installed."""
    if find_spec("triton") is None:
        return "Triton is not installed; the package's extra 'gpu' brings it."
    return None


def load(file: str) -> ModuleType:
    """A kernel's file: ``refuses(problem)`` and ``plan(problem, **operands)``, its result and its starts."""
    return import_module(f"{__name__}.{file}")


def _refuses(file: str, problem: Problem) -> str | None:
    if problem.dtype not in DTYPES:
        return f"It computes in float, but the problem is in {problem.dtype}."
    if problem.in_channels:
        return f"It reads dense inputs, not {problem.c} of a buffer's {problem.in_channels} channels."
    if problem.packed:
        return "It reads filters where they lie, not packed ones."
    return missing() or load(file).refuses(problem)


def _run(name: str, file: str, problem: Problem, *, threads: int = 0, **operands: Any) -> Tensor:
    """Runs this kernel and no other, in the tile a search kept for its bucket or, without one, the model's;
    ``threads`` is for kernels of the CPU.
    """
    from fastconv.kernels.triton import configure, tuned

    device = next(operand.device for operand in operands.values() if isinstance(operand, Tensor))
    with configure.using(configure.chosen() or tuned.tile(name, problem, device)):
        result, launches = load(file).plan(problem, **operands)
    for launch in launches:
        launch()
    return result
