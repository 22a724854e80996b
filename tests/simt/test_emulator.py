"""The emulator itself: every instruction against a naive model, and planted bugs that it must catch."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.fspath(shutil.which("c++") or "g++")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The checks with AddressSanitizer and UndefinedBehaviorSanitizer, which must know that stacks are switched."""
    path = tmp_path_factory.mktemp("emulator") / "check"
    sources = [ROOT / "tests/simt/emulator_check.cpp", *(ROOT / "csrc/cuda/emulator").glob("*.cpp")]
    command = [COMPILER, "-std=c++20", "-O1", *SANITIZERS, f"-I{ROOT}/csrc", *map(str, sources), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def test_instructions_and_planted_bugs(program):
    result = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def test_a_load_outside_global_memory_is_caught(program):
    result = subprocess.run([program, "beyond"], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr
