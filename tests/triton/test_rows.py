"""Triton's rows of the list: where they stand, what they refuse, which tiles their model picks. Nothing runs here."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import fastconv
from fastconv import dispatch, registry
from fastconv.kernels import triton as rows
from fastconv.kernels.triton import configure
from fastconv.problem import Problem

NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
DENSE = "n2c32h9w8_k48r3s2_p1_f16nhwc"


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setattr(rows, "find_spec", lambda name: None)
    rows.missing.cache_clear()
    yield
    rows.missing.cache_clear()


def test_every_line_of_the_table_is_a_row_of_the_list():
    listed = [kernel for kernel in registry.kernels() if kernel.target == "triton"]
    assert [kernel.name for kernel in listed] == [name for name, *_ in rows.TABLE]
    assert all(kernel.devices == ("cuda",) and kernel.deterministic for kernel in listed)


def test_without_triton_every_row_says_so(without_triton):
    for kernel in rows.rows():
        assert kernel.refuses(Problem(DENSE)) == "Triton is not installed; the package's extra 'gpu' brings it."
    assert dispatch.plan(Problem(DENSE), "cuda").name == "conv2d/fprop_aten"


def test_the_list_is_read_without_importing_triton():
    """Neither Triton nor a kernel's file is loaded for a tensor on the CPU."""
    loaded = "any(name == 'triton' or name.startswith('fastconv.kernels.triton.') for name in sys.modules)"
    script = f"import sys, fastconv; fastconv.explain({DENSE!r}); sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@NEEDS_TRITON
def test_refusals_are_sentences():
    for name, text, part in (
        ("conv2d/fprop_igemm_triton", DENSE.replace("f16", "f64"), "computes in float, but the problem is in f64"),
        ("conv2d/fprop_gemm1x1_triton", DENSE, "the filter is 3x2 padded by 1:1 x 1:1"),
        ("conv2d/fprop_gemm1x1_triton", "n1c4h5w6_k4r1s1_g2_f32nhwc", "but the problem has 2"),
        ("conv2d/dgrad_gemm1x1_triton", "n1c4h5w6_k4r1s1_u2_f32nhwc_dgrad", "3x3 gradients meet 5x6 pixels"),
        ("conv2d/fprop_depthwise_triton", DENSE, "C=32 in 1 groups"),
        ("maxpool2d/fprop_window_triton", "maxpool2d_n1c1h29w29_r16s17_f32nhwc_indexu8", "R·S=272"),
        ("maxpool2d/dgrad_window_triton", "maxpool2d_n1c1h9w9_r2s2_f32nhwc_dgrad", "keeps none"),
        ("conv2d/fprop_igemm_triton", DENSE + "_in3of60", "not 32 of a buffer's 60 channels"),
        ("conv2d/fprop_igemm_triton", DENSE + "_packed", "not packed ones"),
        ("unpool2d/fprop_direct_triton", "unpool2d_n1c2h3w4_o6x8_f32nhwc_out1of5_indexi64", "2 of a buffer's 5"),
        ("avgpool2d/dgrad_window_triton", "avgpool2d_n1c2h6w8_r2s2_f32nhwc_dgrad_out1of5", "dense gradients"),
        ("conv2d/fprop_persistent_triton", "n1c16h5w6_k8r3s3_u2_p1_f16nhwc", "but 2x2 does not divide 5x6"),
        ("conv2d/fprop_persistent_triton", "n1c24h6w6_k8r3s3_u2_p1_f16nhwc", "blocks of 16 channels, but C=24"),
        ("conv2d/fprop_persistent_triton", "n1c20h6w6_k8r3s3_p1_f16nhwc", "C=20 and K=8 of 2 bytes"),
        ("conv2d/dgrad_persistent_triton", "n1c16h6w6_k8r3s3_u2_p1_f16nhwc_dgrad", "but the stride is 2x2"),
        ("conv2d/wgrad_boxes_triton", "n1c16h6w6_k8r3s3_p1_tf32nhwc_wgrad", "no matrix instruction does in tf32"),
        ("conv2d/wgrad_boxes_triton", "n1c16h6w6_k12r3s3_p1_f16nhwc_wgrad", "C=16 and K=12 of 2 bytes"),
        ("conv2d/wgrad_boxes_triton", "n1c16h6w7_k8r3s3_u2_p1_f16nhwc_wgrad", "but 2x2 does not divide 6x7"),
        ("conv2d/fprop_igemm_triton", "n65536c1h200w201_k1r1s1_f16nhwc", "2634547200 of them"),
    ):
        assert part in registry.kernel(name).refuses(Problem(text))


@NEEDS_TRITON
@pytest.mark.parametrize("text", [DENSE, DENSE + "_dgrad", DENSE + "_wgrad", "maxpool2d_n2c8h9w7_r3s2_f16nhwc_indexu8"])
def test_explain_lists_them_for_a_gpu(text):
    (choice,) = fastconv.explain(text, device="cuda").choices
    lines = {line.kernel: line.reason for line in choice.lines if line.kernel.endswith("_triton")}
    problem = Problem(text)
    assert list(lines) == [name for name, op, pass_, _ in rows.TABLE if (op, pass_) == (problem.op, problem.pass_)]
    assert None in lines.values()
    assert choice.chosen.endswith("_aten")


@NEEDS_TRITON
def test_a_slice_without_its_buffer_is_an_error():
    from fastconv.kernels.triton import launch

    with pytest.raises(ValueError, match="needs the buffer"):
        launch.written(Problem(DENSE + "_out3of60"), None, (2, 48, 9, 9), None)


@pytest.mark.parametrize("architecture", configure.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["f32", "tf32", "f16", "bf16"])
def test_tiles_fit_their_machine_and_are_shared_by_a_bucket(dtype, architecture):
    chip = configure.machine(architecture)
    for m, n, k in ((7, 3, 5), (1000, 70, 600), (100_000, 64, 64), (3_000_000, 512, 4608), (49, 2048, 512)):
        tile = configure.matrix_tile(dtype, m, n, k, architecture)
        assert configure.shared_bytes(tile, dtype) <= chip.shared
        assert configure.live(tile) <= configure.MOST_LIVE
        bucket = tuple(configure.power(size) for size in (m, n, k))
        assert configure.matrix_tile(dtype, *bucket, architecture) == tile
        if dtype in ("f16", "bf16") and architecture >= 90:
            assert tile.m >= configure.WARPGROUP_ROWS


def test_a_filter_gradient_is_cut_until_the_chip_is_full():
    tile = configure.Tile(64, 64, 64)
    few = configure.splits(tile, 64, 576, 200_000, 90)
    assert few > 1
    assert configure.splits(tile, 4096, 36864, 200_000, 90) == 1
    assert configure.splits(tile, 64, 576, 300, 90) == 1
    assert few & (few - 1) == 0


def test_few_channels_a_group_share_a_tile_with_their_neighbours():
    """As many groups as have the columns of a tile together, no more; the last tile may have fewer."""
    for text, least, expected in (
        ("n1c128h9w9_k128r3s3_g32_f16nhwc", 16, configure.Slab(4, 8, 16, 16)),
        ("n1c128h9w9_k128r3s3_g32_f16nhwc", 64, configure.Slab(16, 2, 64, 64)),
        ("n1c21h9w9_k35r3s3_g7_f16nhwc", 16, configure.Slab(3, 3, 9, 15)),
        ("n1c8h9w9_k4r3s3_g2_f16nhwc", 16, configure.Slab(2, 1, 8, 4)),
        ("n1c64h9w9_k72r3s3_g8_f16nhwc", 16, configure.Slab(1, 8, 8, 9)),
        ("n1c4h9w9_k8r3s3_f16nhwc", 16, configure.Slab(1, 1, 4, 8)),
    ):
        problem = Problem(text)
        assert configure.slab(problem, problem.k, least) == expected


def test_few_channels_share_a_block_with_their_taps():
    assert configure.flat(3, 16) and configure.flat(33, 64)
    assert not configure.flat(64, 64) and not configure.flat(52, 64)
