"""What is compiled, and when: alike shapes share a kernel, processes what was compiled; a capture compiles nothing.

Triton's own binder specialises the arguments and its own cache on disk is asked; its listener says which of the
compilations were found there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from fastconv import registry  # noqa: E402
from fastconv.kernels import triton as rows  # noqa: E402
from fastconv.kernels.triton import prologue  # noqa: E402
from fastconv.problem import Problem  # noqa: E402
from fastconv.testing import blank  # noqa: E402

ARCHITECTURE = 90
# Shapes of one bucket each: other images, heights, widths and channels.
BUCKETS = {
    "conv2d/fprop_igemm_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc",
        "n31c128h29w28_k128r3s3_p1x0_bf16nhwc",
        "n7c128h57w64_k128r3s3_p1_bf16nhwc",
    ),
    "conv2d/fprop_persistent_triton": ("n32c128h28w30_k128r3s3_p1_f16nhwc", "n31c128h30w27_k128r3s3_p1x0_f16nhwc"),
    "conv2d/dgrad_gemm1x1_triton": ("n8c64h28w30_k64r1s1_f16nhwc_dgrad", "n9c64h27w29_k64r1s1_f16nhwc_dgrad"),
    "conv2d/wgrad_splitk_triton": ("n8c64h28w30_k64r3s3_p1_f16nhwc_wgrad", "n9c64h27w29_k64r3s3_p1_f16nhwc_wgrad"),
    "conv2d/wgrad_boxes_triton": ("n8c64h28w30_k64r3s3_p1_f16nhwc_wgrad", "n9c64h36w26_k64r3s3_p1_f16nhwc_wgrad"),
    "batchnorm2d/fprop_direct_triton": (
        "batchnorm2d_n8c64h28w30_f16nhwc_train_relu",
        "batchnorm2d_n9c64h27w29_f16nhwc_train_relu",
    ),
    "maxpool2d/fprop_window_triton": (
        "maxpool2d_n8c64h28w30_r3s3_u2_p1_f16nhwc_indexu8",
        "maxpool2d_n9c64h27w29_r3s3_u2_p1_f16nhwc_indexu8",
    ),
}


def launches(name: str, text: str) -> list:
    problem = Problem(text)
    file = rows.load(rows.file_of(registry.kernel(name)))
    return file.plan(problem, architecture=ARCHITECTURE, **blank.operands(problem))[1]


@contextmanager
def compiled(folder) -> Iterator[list[str]]:
    """Names of the kernels that were compiled inside the block and were not in the cache of that folder."""
    anew: list[str] = []

    def listener(*, src, cache_hit, **_) -> None:
        if not cache_hit:
            anew.append(src.name)

    with triton.knobs.cache.scope(), triton.knobs.compilation.scope():
        triton.knobs.cache.dir = str(folder)
        triton.knobs.compilation.listener = listener
        yield anew


@pytest.mark.parametrize("name", BUCKETS)
def test_shapes_of_a_bucket_share_their_kernels(name, tmp_path):
    first, *others = BUCKETS[name]
    with compiled(tmp_path) as anew:
        for launch in launches(name, first):
            launch.compile(ARCHITECTURE)
        assert anew
        anew.clear()
        for text in others:
            for launch in launches(name, text):
                launch.compile(ARCHITECTURE)
        assert anew == []


def test_a_second_process_compiles_nothing(tmp_path):
    text = BUCKETS["conv2d/dgrad_gemm1x1_triton"]
    script = (
        "from tests.triton.test_compilations import *\n"
        f"with compiled({str(tmp_path)!r}) as anew:\n"
        f"    [launch.compile(90) for launch in launches('conv2d/dgrad_gemm1x1_triton', sys.argv[1])]\n"
        "print(len(anew))"
    )
    done = [
        subprocess.run([sys.executable, "-c", script, shape], capture_output=True, text=True, check=True).stdout.strip()
        for shape in text
    ]
    assert done == ["1", "0"]


@pytest.mark.parametrize("file", ["conv_fprop", "conv_gemm1x1"])
def test_shapes_of_a_bucket_share_kernels_beside_a_training_norm(file, tmp_path):
    """Of an epilogue that takes statistics, and behind a norm on the way, whatever its eps and slope."""
    window = "r3s3_p1" if file == "conv_fprop" else "r1s1"
    texts = [f"n{n}c128h{h}w30_k128{window}_bf16nhwc" for n, h in ((32, 28), (31, 29), (29, 27))]
    with compiled(tmp_path) as anew:
        for i, text in enumerate(texts):
            problem = Problem(text)
            given = torch.empty(4, 128, device="meta")
            norm = prologue.Norm(given[:2], given[2], given[3], 1e-5 + i, "leaky_relu", 0.1 * i)
            operands = blank.operands(problem) | {"stats": torch.empty(2, 128, device="meta"), "norm": norm}
            for launch in rows.load(file).plan(problem, architecture=ARCHITECTURE, **operands)[1]:
                launch.compile(ARCHITECTURE)
            assert bool(anew) == (i == 0)
            anew.clear()
