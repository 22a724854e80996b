"""What nvcc makes of every CUDA kernel: no spills, two blocks a multiprocessor, the instructions it is built on."""

from __future__ import annotations

import re

import pytest

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
LEAST_BLOCKS = 2


@pytest.mark.parametrize(("architecture", "source"), CASES)
def test_kernels_fit_their_machine(architecture, source, tmp_path):
    entries = cubin.compiled(source, architecture, tmp_path)
    assert entries
    for entry in entries:
        assert entry.spilled <= MOST_SPILLED, entry
        assert entry.blocks >= LEAST_BLOCKS, entry
    if cubin.disassembler() is None:
        pytest.skip("cuobjdump is not installed, so instructions are not looked at.")
    code = cubin.instructions(tmp_path / f"{source.stem}.cubin")
    for entry in entries:
        check_instructions(entry, code[entry.mangled])


def check_instructions(entry: cubin.Entry, code: str) -> None:
    """Tensor cores where they are meant, asynchronous copies, accesses of 128 bits."""
    assert "LDL" not in code and "STL" not in code, f"{entry.name} uses local memory."
    assert "ATOM" not in code and "RED." not in code, f"{entry.name} adds in an order of its own."
    if "MatrixSums" in entry.name:
        four_bytes, transposed = "igemm<float" in entry.name, "OuterMatrixSums" in entry.name
        assert ("HMMA.1688.F32.TF32" if four_bytes else "HMMA.16816.F32") in code, entry.name
        if not (four_bytes and transposed):  # ldmatrix transposes elements of two bytes alone
            assert ("LDSM.16.MT88.4" if transposed else "LDSM.16.M88.4") in code, entry.name
        assert "STG.E.128" in code, entry.name
    if entry.name.startswith("igemm") or re.match(r"wgrad_igemm<.*(true|1), \d+>", entry.name):
        assert "LDGSTS.E.BYPASS.128" in code, entry.name
    if re.match(r"depthwise_wgrad<\w+, [48],", entry.name):
        assert "LDG.E.128" in code, entry.name
    vectors = entry.name.startswith("depthwise<") and re.match(r"depthwise<\w+, [48],", entry.name)
    if vectors or (entry.name.startswith(("fprop_", "dgrad_")) and not entry.name.endswith(", 1>")):
        assert "LDG.E.128" in code and "STG.E.128" in code, entry.name
