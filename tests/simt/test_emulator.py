"""The emulator itself: every instruction against a naive model, and planted bugs that it must catch."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = os.fspath(shutil.which("c++") or "g++")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds the emulator with address and undefined behaviour sanitizers, which must know that stacks are switched."""
    path = tmp_path_factory.mktemp("emulator")
    with ThreadPoolExecutor(2) as pool:
        for source in (ROOT / "csrc/cuda/emulator").glob("*.cpp"):
            pool.submit(compile_to, path / f"{source.stem}.o", "-c", source)
    return path


def compile_to(path: Path, *arguments) -> None:
    command = [COMPILER, "-std=c++20", "-O1", *SANITIZERS, f"-I{ROOT}/csrc", *map(str, arguments), "-o", str(path)]
    subprocess.run(command, check=True)


def program(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        compile_to(path, ROOT / f"tests/simt/{name}.cpp", *folder.glob("*.o"))
    return path


@pytest.mark.parametrize("name", ["emulator_check", "hopper_models", "hopper_bugs", "cluster_check"])
def test_instructions_and_planted_bugs(folder, name):
    result = subprocess.run([program(folder, name)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def test_a_load_outside_global_memory_is_caught(folder):
    result = subprocess.run([program(folder, "emulator_check"), "beyond"], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr
