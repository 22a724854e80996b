"""The SIMD vocabulary against its definitions, compiled for each instruction set and run where the machine can."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from fastconv._native import C

ROOT = Path(__file__).parents[2]
X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = {
    "scalar": ["-DFASTCONV_PORTABLE"],
    **({"avx2": ["-mavx2", "-mfma", "-mf16c"]} if X86 else {}),
    **({"avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mf16c", "-mfma"]} if X86 else {}),
    "neon": [],
}
CROSS = "aarch64-linux-gnu-g++"


EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
CROSSED = bool(shutil.which(CROSS) and EMULATOR)  # Arm's set is checked on other machines where the tools are there


def commands(isa: str, program: Path) -> tuple[list[str], list[str]]:
    """The compiler and the runner for an instruction set."""
    if isa == "neon" and X86:
        return [CROSS, "-static"], [EMULATOR, str(program)]
    return [os.fspath(shutil.which("c++") or "g++")], [str(program)]


@pytest.mark.parametrize("isa", [isa for isa in FLAGS if isa != "neon" or not X86 or CROSSED])
def test_every_verb(isa, tmp_path):
    """What this CPU cannot run must compile."""
    program = tmp_path / f"vec_{isa}"
    compiler, runner = commands(isa, program)
    source = ROOT / "tests/simd/vec_check.cpp"
    options = ["-std=c++20", "-O2", "-Wno-psabi", "-ffp-contract=off", f"-DFASTCONV_ISA={isa}", f"-I{ROOT}/csrc"]
    subprocess.run([*compiler, *options, *FLAGS[isa], str(source), "-o", str(program)], check=True)
    if isa == "neon" or C.cpu_supports(isa):
        result = subprocess.run(runner, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stdout[-2000:]
