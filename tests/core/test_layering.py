"""Who may import whom (ARCHITECTURE.md): the arrows of the house point one way."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastconv"

# Part of the package -> parts its modules may import when they are loaded. A part may always import itself.
ALLOWED = {
    "_native": set(),
    "problem": {"_native"},
    "reference": {"problem"},
    "registry": {"problem", "kernels"},  # the list is filled from kernels/ on first use
    "settings": {"_native", "dispatch", "registry"},  # on a change of settings only
    "kernels": {"_native", "problem", "registry", "settings"},
    "dispatch": {"_native", "problem", "registry", "settings"},
    "memory": {"_native"},
    "ops": {"dispatch"},
    "functional": {"ops", "_native", "kernels", "problem"},  # the extension takes the ordinary call directly
    "profiling": {"_native", "problem", "settings"},
    "nn": {"functional", "profiling", "problem", "dispatch"},
    "explanation": {"dispatch", "nn", "problem", "profiling", "_native", "registry"},
    "testing": {
        "problem",
        "reference",
        "registry",
        "_native",
        "profiling",
        "functional",
        "settings",
        "dispatch",
        "kernels",
        "graph",
    },
    "models": {"nn", "functional"},
    "training": {"models", "functional"},
    "graph": {"_native", "problem", "registry", "settings", "dispatch", "kernels"},
}
FREE = {"cli", "__main__", "__init__"}  # the top of the house


def part(module: str) -> str:
    """'fastconv.kernels.aten' -> 'kernels'; a leading 'reference_pool' counts as 'reference'."""
    name = module.split(".")[1]
    return "reference" if name.startswith("reference") else name


def imported_parts(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = node.module == "fastconv"
            names |= {f"fastconv.{alias.name}" for alias in node.names} if inside else {node.module}
    return {part(name) for name in names if name.startswith("fastconv.")}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_point_downwards(path):
    relative = path.relative_to(PACKAGE)
    own = part(".".join(["fastconv", *relative.with_suffix("").parts]))
    if own in FREE or own == "_build":
        return
    assert own in ALLOWED, f"fastconv/{own} has no place in the house: give it a line in ALLOWED and ARCHITECTURE.md."
    wrong = imported_parts(path) - ALLOWED[own] - {own}
    assert not wrong, f"{relative} imports {sorted(wrong)}; {own} may import {sorted(ALLOWED[own])}."


SOURCES = [p for suffix in ("*.h", "*.cpp", "*.cu", "*.inc") for p in (ROOT / "csrc").rglob(suffix)]
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"][^>"]+[>"])', re.MULTILINE)


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda p: str(p.relative_to(ROOT)))
def test_cpp_includes_point_downwards(path):
    """core knows only the standard library; cpu and cuda know core; only bindings see torch and Python."""
    layer = path.relative_to(ROOT / "csrc").parts[0]
    includes = INCLUDE.findall(path.read_text())
    foreign = ("torch/", "ATen/", "c10/", "pybind11/", "Python.h")
    if layer != "bindings":
        assert not [i for i in includes if i[1:].startswith(foreign)], f"{path.name} sees torch or Python."
    others = {
        "core": ("cpu/", "cuda/", "bindings/", "plan/"),
        "cpu": ("cuda/", "bindings/", "plan/"),
        "cuda": ("cpu/", "bindings/", "plan/"),
        "plan": ("cpu/", "cuda/", "bindings/"),
    }
    assert not [i for i in includes if i[1:].startswith(others.get(layer, ()))], f"{path.name} looks upwards."


def test_intrinsics_live_in_simd():
    outside = [
        p for p in SOURCES if "simd" not in p.parts and re.search(r"\b_mm(256|512)?_|immintrin|arm_neon", p.read_text())
    ]
    assert not outside, f"Intrinsics outside csrc/cpu/simd: {outside}."


def test_what_differs_between_device_and_emulator_stands_in_one_folder():
    """Kernels are written once, in the operations of csrc/cuda/common, which alone holds PTX and CUDA's own words."""
    words = r"\basm\b|__CUDACC__|__syncthreads|threadIdx|blockIdx|__shared__|_sync\(|#include <cuda"
    kernels = [p for p in SOURCES if "cuda" in p.parts and not {"common", "emulator"} & set(p.parts)]
    assert kernels
    outside = [p for p in kernels if re.search(words, p.read_text())]
    assert not outside, f"Device code outside csrc/cuda/common: {outside}."


def test_environment_variables_are_read_in_one_place():
    readers = [p for p in PACKAGE.rglob("*.py") if re.search(r"os\.environ|getenv", p.read_text())]
    assert [p.name for p in readers] == ["settings.py"]
