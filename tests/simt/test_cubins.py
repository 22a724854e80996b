"""What nvcc makes of every CUDA kernel: no spills, two blocks a multiprocessor, the instructions it is built on; and
that the device code links and loads where there is no GPU.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from fastconv._native import C
from fastconv.testing import cubin

pytestmark = pytest.mark.skipif(cubin.missing() is not None, reason=str(cubin.missing()))

ORDINARY = "90a"
CASES = [
    pytest.param(
        a, source, marks=() if a == ORDINARY else pytest.mark.full, id=f"{source.parent.name}/{source.stem}-{a}"
    )
    for a in cubin.ARCHITECTURES
    for source in cubin.files()
]
MOST_SPILLED = 0
ATOMIC = re.compile(r"(?<![.\w])(ATOM|RED)")  # not SYNCS.ARRIVE...RED, which arrives at another block's barrier
LEAST_BLOCKS = 2
HOPPER, HOPPER_REGISTERS = "90a", 168  # of three warpgroups at their start; consumers take 224, the producer keeps 56


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """compiled(source, architecture): the object and its kernels, compiled once."""

    @cache
    def compile(source: Path, architecture: str) -> tuple[Path, list[cubin.Entry]]:
        folder = tmp_path_factory.mktemp(source.stem)
        return folder / f"{source.stem}.o", cubin.compiled(source, architecture, folder)

    return compile


@pytest.mark.parametrize(("architecture", "source"), CASES)
def test_kernels_fit_their_machine(architecture, source, compiled):
    path, entries = compiled(source, architecture)
    assert entries
    for entry in entries:
        assert entry.spilled <= MOST_SPILLED, entry
        assert entry.shared % 16 == 0, f"{entry} takes another number for its shared memory."
        if entry.name.startswith("group_"):  # one block of a multiprocessor, and an empty body elsewhere
            assert architecture != HOPPER or (entry.blocks == 1 and entry.registers <= HOPPER_REGISTERS), entry
        else:
            assert entry.blocks >= LEAST_BLOCKS, entry
    if cubin.disassembler() is None:
        pytest.skip("cuobjdump is not installed, so instructions are not looked at.")
    code = cubin.instructions(path)
    for entry in entries:
        check = check_hopper_instructions if entry.name.startswith("group_") else check_instructions
        check(entry, code[entry.mangled])


def check_hopper_instructions(entry: cubin.Entry, code: str) -> None:
    """Warpgroup products of both halves of a tile, copies by descriptor, registers given to who multiplies."""
    if entry.architecture != HOPPER:
        assert "HGMMA" not in code and "UTMALDG" not in code, entry.name
        return
    assert "LDL" not in code and "STL" not in code, f"{entry.name} uses local memory."
    assert not ATOMIC.search(code), f"{entry.name} adds in an order of its own."
    tile = re.search(r"(Group|Conv)Tile<(\d+), (\d+)(?:, (true|false|\d))?>", entry.name)
    swapped = tile.group(4) in ("true", "1")  # pixels are the product's columns, not its rows
    columns = tile.group(2 if swapped else 3)
    depth, kind = ("8", ".TF32") if "<float" in entry.name else ("16", "")
    product = rf"HGMMA\.64x{columns}x{depth}\.F32{'.BF16' if 'bf16' in entry.name else kind}"
    assert len(re.findall(product, code)) >= 8, entry.name
    assert "UTMALDG.2D" in code or "UTMALDG.3D" in code, entry.name
    assert "UTMALDG.4D.IM2COL" in code, entry.name
    assert "USETMAXREG" in code and "SYNCS" in code and "STG.E.128" in code, entry.name
    teams = tile.group(1) == "Conv" and not swapped and columns == "128"
    assert all((f"UTMALDG.{kind}.MULTICAST" in code) == teams for kind in ("2D", "3D", "4D.IM2COL")), entry.name
    assert ("UTMASTG.3D" in code) == (tile.group(1) == "Conv" and not swapped), entry.name


def test_device_code_links_and_loads(compiled, tmp_path):
    """With the CUDA runtime alone, on any machine: every kernel of the list is there, and a start without a GPU is an
    error with CUDA's own words.
    """
    objects = [compiled(source, ORDINARY)[0] for source in cubin.files()]
    program, started = tmp_path / "check", "conv2d/fprop_igemm_simt"
    table = [cubin.SOURCES / "cuda/table.cu", Path(__file__).with_name("device_check.cpp")]
    command = ["nvcc", "-std=c++20", f"-I{cubin.SOURCES}", f"-arch=sm_{ORDINARY}", *table, *objects, "-o", program]
    subprocess.run(command, check=True)
    words = [program] if torch.cuda.is_available() else [program, started]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [row["name"] for row in C.gpu_kernels()] + C.gpu_pairs()
    assert [line for line in lines if line in names] == names
    if len(words) > 1:
        assert lines[names.index(started) + 1].startswith("CUDA: ")


def check_instructions(entry: cubin.Entry, code: str) -> None:
    """Tensor cores where they are meant, asynchronous copies, accesses of 128 bits."""
    assert "LDL" not in code and "STL" not in code, f"{entry.name} uses local memory."
    assert not ATOMIC.search(code), f"{entry.name} adds in an order of its own."
    if "MatrixSums" in entry.name:
        four_bytes, transposed = "MatrixSums<float" in entry.name, "OuterMatrixSums" in entry.name
        assert ("HMMA.1688.F32.TF32" if four_bytes else "HMMA.16816.F32") in code, entry.name
        if not (four_bytes and transposed):  # ldmatrix transposes elements of two bytes alone
            assert ("LDSM.16.MT88.4" if transposed else "LDSM.16.M88.4") in code, entry.name
        assert "STG.E.128" in code, entry.name
    if found := re.search("(?:Stem|Group)OuterMatrix<(float)?", entry.name):
        assert "HMMA" in code and (found.group(1) or "LDSM.16.MT88.4" in code), entry.name
    if entry.name.startswith("grouped") and "GroupMatrix" in entry.name:
        assert "HMMA" in code and "STG.E.128" in code, entry.name
    if entry.name.startswith(("igemm", "stem", "grouped")) or re.match(r"wgrad_igemm<.*(true|1), \d+>", entry.name):
        assert "LDGSTS.E.BYPASS.128" in code, entry.name
    if re.match(r"depthwise_wgrad<\w+, [48],", entry.name):
        assert "LDG.E.128" in code, entry.name
    if re.match(r"whole_(maps|planes)<\w+, \w+, [48]>", entry.name):
        assert "LDG.E.128" in code, entry.name
    if entry.name.startswith("depthwise_pointwise<"):
        wide = entry.name.endswith((", true>", ", 1>"))
        loads = "LDG.E.128" if "<float" in entry.name else "LDG.E.64"  # four channels, rows of threads a line
        assert "STG.E.128" in code and "LDGSTS.E.BYPASS.128" in code and (loads in code or not wide), entry.name
    if entry.name.startswith("transpose<"):
        assert "LDG.E.128" in code and "STG.E.128" in code, entry.name
    if entry.name.startswith("columns<"):
        assert "STG.E.128" in code and ("LDG.E.128" in code or entry.name.endswith((", false>", ", 0>"))), entry.name
    if re.match(r"(clear|unpool_gather)<\w+, [48]>", entry.name):
        assert "STG.E.128" in code, entry.name
    vectors = entry.name.startswith("depthwise<") and re.match(r"depthwise<\w+, [48],", entry.name)
    if vectors or (entry.name.startswith(("fprop_", "dgrad_")) and not entry.name.endswith(", 1>")):
        assert "LDG.E.128" in code and "STG.E.128" in code, entry.name
