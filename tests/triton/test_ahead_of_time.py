"""Every Triton kernel, compiled for three architectures without a GPU, in the tiles its model picks: no spills, shared
memory that the architecture has, the matrix instructions its arithmetic needs.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from fastconv.kernels import triton as rows  # noqa: E402
from fastconv.kernels.triton import configure, dw_pw, norm_grad, prologue  # noqa: E402
from fastconv.problem import Problem  # noqa: E402
from fastconv.testing import blank  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MOST_REGISTERS = 255  # of a thread

# Kernel -> problems that reach each of its default code paths: dtypes, layouts, few channels, strides, epilogues.
DEFAULTS = {
    "conv2d/fprop_igemm_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc_bias_res_relu",
        "n32c256h14w18_k256r3s3_u2_p1_f16nhwc",
        "n32c3h224w226_k64r7s7_u2_p3_f16nhwc_bias_relu",
        "n32c64h56w54_k64r3s3_p1_tf32nhwc",
        "n1c3h224w224_k32r3s3_u2_p1_tf32nhwc",
        "n8c64h28w30_k64r3s3_p1_f32nchw_bias_silu",
        "n8c128h28w30_k128r3s3_p1_g32_bf16nhwc",
        "n8c80h28w30_k80r3s3_p1_g10_f16nhwc",
    ),
    "conv2d/dgrad_igemm_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc_dgrad",
        "n32c128h56w54_k128r3s3_u2_p1_f16nhwc_dgrad",
        "n32c64h56w54_k64r3s3_p1_tf32nhwc_dgrad",
        "n1c3h224w224_k32r3s3_u2_p1_tf32nhwc_dgrad",
        "n8c64h28w30_k64r3s3_u2_p1_f32nhwc_dgrad",
        "n8c128h28w30_k128r3s3_u2_p1_g32_bf16nhwc_dgrad",
    ),
    "conv2d/wgrad_splitk_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc_wgrad",
        "n32c256h14w18_k256r3s3_u2_p1_f16nhwc_wgrad",
        "n8c64h28w30_k64r3s3_p1_tf32nhwc_wgrad",
        "n8c64h28w30_k64r3s3_p1_f32nhwc_wgrad",
        "n8c128h28w30_k128r3s3_p1_g32_bf16nhwc_wgrad",
    ),
    "conv2d/fprop_gemm1x1_triton": (
        "n32c256h56w54_k64r1s1_bf16nhwc_bias_relu",
        "n32c256h28w30_k512r1s1_u2_f16nhwc_bias_res_relu",
        "n8c64h28w30_k256r1s1_f32nchw",
    ),
    "conv2d/dgrad_gemm1x1_triton": (
        "n32c256h56w54_k64r1s1_bf16nhwc_dgrad",
        "n32c256h56w54_k64r1s1_tf32nhwc_dgrad",
    ),
    "conv2d/fprop_persistent1x1_triton": (
        "n32c256h56w54_k64r1s1_bf16nhwc_bias_relu",
        "n32c128h28w30_k512r1s1_f16nhwc_bias_res_relu",
        "n8c64h28w30_k256r1s1_tf32nhwc",
    ),
    "conv2d/dgrad_persistent1x1_triton": (
        "n32c256h56w54_k64r1s1_bf16nhwc_dgrad",
        "n32c256h56w54_k64r1s1_tf32nhwc_dgrad",
    ),
    "conv2d/fprop_persistent_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc_bias_res_relu",
        "n32c512h7w9_k512r3s3_p1_f16nhwc_relu",
        "n32c64h56w54_k64r3s3_p1_tf32nhwc",
        "n32c128h56w54_k128r3s3_u2_p1_bf16nhwc_bias_relu",
        "n32c64h56w54_k128r3s3_u2_p1_tf32nhwc",
        "n32c48h28w30_k512r1s1_u2x1_f16nhwc",
    ),
    "conv2d/dgrad_persistent_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc_dgrad",
        "n32c64h56w54_k64r3s3_p1_tf32nhwc_dgrad",
    ),
    "conv2d/wgrad_boxes_triton": (
        "n32c128h28w30_k128r3s3_p1_bf16nhwc_wgrad",
        "n64c256h14w14_k256r3s3_p1_f16nhwc_wgrad",
        "n32c256h28w28_k256r3s3_u2_p1_f16nhwc_wgrad",
        "n128c512h7w7_k512r3s3_p1_bf16nhwc_wgrad",
        "n8c16h224w224_k64r7s7_u2_p3_f16nhwc_wgrad",
        "n64c256h56w56_k512r1s1_u2_bf16nhwc_wgrad",
    ),
    "conv2d/fprop_depthwise_triton": (
        "n32c144h56w54_k144r3s3_p1_g144_bf16nhwc_bias_relu6",
        "n8c96h28w30_k96r7s7_p3_g96_f32nchw",
    ),
    "conv2d/dgrad_depthwise_triton": ("n32c144h56w54_k144r3s3_u2_p1_g144_bf16nhwc_dgrad",),
    "conv2d/wgrad_depthwise_triton": ("n32c144h56w54_k144r3s3_p1_g144_bf16nhwc_wgrad",),
    "maxpool2d/fprop_window_triton": ("maxpool2d_n32c64h112w110_r3s3_u2_p1_bf16nhwc_indexu8",),
    "maxpool2d/dgrad_window_triton": (
        "maxpool2d_n32c64h112w110_r3s3_u2_p1_bf16nhwc_dgrad_indexu8",
        "maxpool2d_n32c64h112w110_r3s3_u2_p1_f16nhwc_dgrad_indexi64",
    ),
    "adaptivemax2d/fprop_window_triton": ("adaptivemax2d_n8c64h13w17_o5x7_f32nhwc_indexi64",),
    "adaptivemax2d/dgrad_window_triton": ("adaptivemax2d_n8c64h13w17_o5x7_f32nhwc_dgrad_indexi64",),
    "avgpool2d/fprop_window_triton": ("avgpool2d_n32c64h28w30_r3s3_u2_p1_f16nhwc",),
    "avgpool2d/dgrad_window_triton": ("avgpool2d_n32c64h28w30_r3s3_u2_p1_f32nchw_dgrad",),
    "adaptiveavg2d/fprop_window_triton": ("adaptiveavg2d_n32c512h7w9_o1x1_bf16nhwc",),
    "adaptiveavg2d/dgrad_window_triton": ("adaptiveavg2d_n32c512h7w9_o1x1_bf16nhwc_dgrad",),
    "unpool2d/fprop_direct_triton": ("unpool2d_n8c64h14w16_o28x32_f32nhwc_indexi64",),
    "unpool2d/dgrad_direct_triton": ("unpool2d_n8c64h14w16_o28x32_f32nhwc_dgrad_indexi64",),
    "batchnorm2d/fprop_direct_triton": (
        "batchnorm2d_n32c64h56w54_bf16nhwc_train_res_relu",
        "batchnorm2d_n32c64h56w54_f32nchw_relu",
    ),
    "batchnorm2d/dgrad_direct_triton": ("batchnorm2d_n32c64h56w54_bf16nhwc_train_dgrad",),
    "batchnorm2d/wgrad_direct_triton": ("batchnorm2d_n32c64h56w54_f32nchw_train_wgrad",),
}
COPYING = {name for name in DEFAULTS if "persistent" in name or "boxes" in name}  # by descriptors
CASES = [(name, text) for name, problems in DEFAULTS.items() for text in problems]


@dataclass(frozen=True)
class Facts:
    """Of one compiled kernel. registers: of a thread. spilled: bytes of stack and local memory. shared: bytes."""

    registers: int
    spilled: int
    shared: int
    ptx: str


def facts(compiled, folder: Path) -> Facts:
    """What Triton and the tools of its package say."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])

    command = [TOOLS / "cuobjdump", "--dump-resource-usage", cubin]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown)}
    return Facts(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared, compiled.asm["ptx"])


def launches(name: str, problem: Problem, architecture: int) -> list:
    kernel = next(row for row in rows.rows() if row.name == name)
    assert kernel.refuses(problem) is None
    return rows.load(rows.file_of(kernel)).plan(problem, architecture=architecture, **blank.operands(problem))[1]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory) -> None:
    """Everything is compiled anew."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        yield


@pytest.mark.parametrize("architecture", configure.ARCHITECTURES)
@pytest.mark.parametrize(("name", "text"), CASES, ids=str)
def test_defaults_compile_without_spills(name, text, architecture, tmp_path):
    problem = Problem(text)
    check(launches(name, problem, architecture), name, problem, architecture, tmp_path)


def check(started: list, name: str, problem: Problem, architecture: int, folder: Path) -> None:
    """Registers, spills, shared memory and instructions of every start."""
    for launch in started:
        found = facts(launch.compile(architecture), folder)
        assert found.spilled == 0, f"{launch}: {found.spilled} bytes of local memory"
        assert found.registers <= MOST_REGISTERS
        assert found.shared <= configure.machine(architecture).shared
        assert not re.search(r"\b(?:atom|red)\.", found.ptx), "Sums in any order are not the same bits."
        dense = "BLOCK_K" in launch.arguments and problem.dtype != "f32"
        if dense and architecture == 90:
            assert "wgmma.mma_async" in found.ptx
        if dense and architecture == 80:
            assert "mma.sync" in found.ptx
        if dense and architecture == 100:
            assert "tcgen05.mma" in found.ptx
        if name in COPYING and launch is started[0] and architecture >= 90:
            assert "cp.async.bulk.tensor" in found.ptx
        if problem.dtype == "f32":
            assert "tf32" not in found.ptx, "Products of float must be exact."


@pytest.mark.parametrize("architecture", configure.ARCHITECTURES)
@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("n32c144h56w54_k144r3s3_p1_g144_bf16nhwc_bias_relu6", "_k24r1s1_bf16nhwc_bias_res"),
        ("n32c576h14w15_k576r5s5_u2_p2_g576_f16nhwc_bias_silu", "_k160r1s1_f16nhwc_bias"),
        ("n1c96h28w30_k96r3s3_p1_g96_f32nchw_bias_relu6", "_k64r1s1_f32nchw_bias"),
    ],
)
def test_two_convolutions_in_one_kernel_compile_without_spills(text, behind, architecture, tmp_path):
    first = Problem(text)
    second = Problem(f"n{first.n}c{first.k}h{first.h.out}w{first.w.out}{behind}")
    one, two = blank.operands(first), blank.operands(second)
    operands = {"x": one["x"], "w": one["w"], "depthwise_bias": one["bias"], "filter": two["w"]}
    operands |= {name: two[name] for name in ("bias", "residual") if name in two}
    assert dw_pw.refuses(first, second) is None
    started = dw_pw.plan(first, second, architecture=architecture, **operands)[1]
    check(started, "dw_pw", second, architecture, tmp_path)


@pytest.mark.parametrize("architecture", configure.ARCHITECTURES)
@pytest.mark.parametrize(
    ("file", "text", "before"),
    [
        ("conv_fprop", "n32c128h28w30_k128r3s3_p1_bf16nhwc", None),
        ("conv_fprop", "n32c64h56w54_k64r3s3_u2_p1_tf32nhwc", None),
        ("conv_fprop", "n8c64h28w30_k64r3s3_p1_f32nchw", None),
        ("conv_gemm1x1", "n32c256h56w54_k64r1s1_f16nhwc", None),
        ("conv_gemm1x1", "n32c64h56w54_k256r1s1_bf16nhwc", "relu"),
        ("conv_gemm1x1", "n32c512h14w18_k2048r1s1_f16nhwc", "relu"),
        ("conv_gemm1x1", "n32c128h28w30_k512r1s1_tf32nhwc", "relu"),
        ("conv_gemm1x1", "n8c64h28w30_k256r1s1_f32nchw", "relu"),
        ("conv_fprop", "n32c64h56w54_k64r3s3_p1_bf16nhwc", "relu"),
        ("conv_fprop", "n32c128h28w30_k128r3s3_u2_p1_tf32nhwc", "relu"),
        ("conv_fprop", "n32c512h7w9_k512r3s3_p1_f16nhwc", "relu"),
        ("conv_fprop", "n32c24h28w30_k48r3s3_p1_f16nhwc", "relu"),
        ("conv_fprop", "n8c64h28w30_k64r3s3_p1_f32nchw", "relu"),
        ("conv_fprop", "n32c128h28w30_k128r3s3_p1_bf16nhwc", "gelu"),
        ("conv_gemm1x1", "n32c128h28w30_k512r1s1_f16nhwc", "silu"),
    ],
)
def test_a_convolution_beside_a_training_norm_compiles_without_spills(file, text, before, architecture, tmp_path):
    problem = Problem(text)
    module = rows.load(file)
    stats = torch.empty(2, problem.k, device="meta")
    norm = {}
    if before:
        given = torch.empty(4, problem.c, device="meta")
        norm = {"norm": prologue.Norm(given[:2], given[2], given[3], 1e-5, before)}
    operands = blank.operands(problem) | {"stats": stats} | norm
    check(module.plan(problem, architecture=architecture, **operands)[1], file, problem, architecture, tmp_path)


@pytest.mark.parametrize("architecture", configure.ARCHITECTURES)
@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("text", "activation"),
    [("n32c64h56w54_bf16nhwc", "relu"), ("n32c64h56w54_f32nchw", "silu"), ("n8c512h7w9_f16nhwc", "gelu")],
)
def test_a_norms_gradient_behind_an_activation_compiles_without_spills(text, activation, told, architecture, tmp_path):
    problem = Problem(f"batchnorm2d_{text}_train_dgrad")
    operands = blank.operands(problem)
    beside = {"at": operands["y"], "kept": operands["y"]} if told else {"bias": torch.empty(problem.c, device="meta")}
    behind = norm_grad.Behind(activation, **beside)
    started = norm_grad.plan(problem, architecture=architecture, behind=behind, **operands)[1]
    check(started, "norm_grad", problem, architecture, tmp_path)


@pytest.mark.parametrize("name", [name for name in DEFAULTS if "depthwise" not in name])
def test_sizes_of_one_compile(name):
    """Triton makes arguments that are 1 constants, which the interpreter does not; such kernels are others."""
    problem = Problem(DEFAULTS[name][0])
    filters = {"k": 1} if problem.is_conv else {}
    ones = {"n": 1} if name in COPYING else {"n": 1, "c": 1, **filters}  # whose rows must be vectors
    for launch in launches(name, problem.replace(**ones), 90):
        assert launch.compile(90).asm["cubin"]


@pytest.mark.parametrize("architecture", configure.ARCHITECTURES)
@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
def test_groups_that_share_a_tile_are_loaded_by_vectors(pass_, architecture):
    """Four channels of a group are 8 bytes; four groups of them are copied 16 bytes at a time, and no 8."""
    name = {"fprop": "fprop_igemm", "dgrad": "dgrad_igemm", "wgrad": "wgrad_splitk"}[pass_]
    problem = Problem("n8c128h28w30_k128r3s3_p1_g32_bf16nhwc").replace(pass_=pass_)
    ptx = launches(f"conv2d/{name}_triton", problem, architecture)[0].compile(architecture).asm["ptx"]
    sizes = set(re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^\]]*\], \[[^\]]*\], (\w+)", ptx))
    assert sizes == {"0x10"}
    assert not re.search(r"ld\.global\S*\.v[12]\.b32", ptx)


# Of TF32 a matrix instruction takes no transposed operand, which dgrad's filter is.
IN_PLACE = [(name, text) for name, text in CASES if name in COPYING and "tf32nhwc_dgrad" not in text]


@pytest.mark.parametrize(("name", "text"), IN_PLACE, ids=str)
def test_what_a_copy_brings_is_multiplied_where_it_lies(name, text, tmp_path):
    """On sm_90 no operand passes through registers but a filter gradient's left one, whose fragments are turned as they
    are loaded; and the tensor copies are in the binary too.
    """
    compiled = launches(name, Problem(text), 90)[0].compile(90)
    through_registers = compiled.asm["ttgir"].count("ttg.local_load")
    assert "warp_group_dot" in compiled.asm["ttgir"] and through_registers == ("wgrad" in name)
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [TOOLS / "nvdisasm", tmp_path / "kernel.cubin"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "UTMALDG" in shown and "HGMMA" in shown
    if "wgrad" in name:
        assert set(re.findall(r"LDSM\S*", shown)) == {"LDSM.16.MT88.4"}


def test_every_kernel_is_compiled():
    """No line of the table is without a default here."""
    assert set(DEFAULTS) == {name for name, *_ in rows.TABLE}
