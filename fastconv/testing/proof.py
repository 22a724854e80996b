"""Which GPU kernel is proven where: by the emulator or interpreter in every run of the tests, and on which hardware.

    python -m fastconv.testing.proof [--write docs/gpu.md]

prints the table, or puts it between the marks of a file. What ran on hardware is read from the results that
``python -m benchmarks.gpu`` leaves in ``benchmarks/results/<gpu>/gpu.json``.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from fastconv import registry
from fastconv.kernels import pairs
from fastconv.registry import Kernel
from fastconv.testing import gpu_cases

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
NEVER = "not yet"
MARKS = "<!-- proof -->", "<!-- /proof -->"


def kernels() -> list[Kernel]:
    """Our kernels that run on GPUs, CUDA C++ first."""
    rows = [kernel for kernel in registry.kernels() if kernel.devices == ("cuda",)]
    return sorted(rows, key=lambda kernel: kernel.gpu is None)


def hardware(units: dict[str, dict], kernel: Kernel) -> str:
    """What the results of one machine say of a kernel: the worst first."""
    smoke = units.get(f"smoke/{kernel.name}")
    proofs = {dtype: units.get(f"prove/{kernel.name}/{dtype}") for dtype in gpu_cases.dtypes(kernel)}
    ran = {dtype: found for dtype, found in proofs.items() if found and found["outcome"] != "skipped"}
    every = [found for found in (smoke, *ran.values()) if found]
    if bad := sorted({found["outcome"] for found in every} & {"wrong", "error", "interrupted"}):
        return ", ".join(bad).upper()
    if ran and not any(found is None for found in proofs.values()):
        return f"{sum(found['problems'] for found in ran.values())} problems: {', '.join(ran)}"
    if ran:
        return f"in part: {', '.join(ran)}"
    if smoke and smoke["outcome"] == "ok":
        return f"{smoke['problems']} small problems"
    return NEVER


def table(units: dict[str, dict], name: str = "hardware") -> str:
    """Kernels x proven without a GPU x proven on it, in Markdown."""
    lines = [f"| kernel | without a GPU | {name} |", "|---|---|---|"]
    for kernel in kernels():
        without = "interpreted" if kernel.gpu is None else "emulated"
        lines.append(f"| {kernel.name} | {without} | {hardware(units, kernel)} |")
    for pair in pairs.pairs():
        without = "emulated" if pair.devices == ("cuda",) else "interpreted"
        found = units.get(f"pair/{pair.name}")
        proven = NEVER
        if found and found["outcome"] != "skipped":
            proven = f"{found['problems']} pairs" if found["outcome"] == "ok" else found["outcome"].upper()
        lines.append(f"| {pair.name} | {without} | {proven} |")
    return "\n".join(lines)


def recorded(folder: Path = RESULTS) -> dict[str, dict[str, dict]]:
    """The results of every machine that has any, by its name."""
    found = {}
    for path in sorted(folder.glob("*/gpu.json")):
        state = json.loads(path.read_text())
        found[state["machine"].get("gpu", path.parent.name)] = {unit["unit"]: unit for unit in state["units"]}
    return found


def tables() -> str:
    """One table for each machine that has results; one that says so where there is none."""
    return "\n\n".join(table(units, name) for name, units in recorded().items()) or table({})


def write(path: Path) -> None:
    """Puts the tables between the marks of a document; ValueError when it has none."""
    text, pattern = path.read_text(), re.compile(f"({MARKS[0]}\n).*?({MARKS[1]})", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{path} has no place for the table: the marks {MARKS[0]} and {MARKS[1]}.")
    path.write_text(pattern.sub(lambda match: f"{match[1]}{tables()}\n{match[2]}", text))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a document whose table is replaced")
    options = parser.parse_args()
    if options.write:
        return write(options.write)
    if not recorded():
        print("No kernel has run on hardware yet: benchmarks/results holds no gpu.json.\n")
    print(tables())


if __name__ == "__main__":
    main()
