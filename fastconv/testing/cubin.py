"""What nvcc makes of the CUDA kernels, without a GPU: registers, spills, shared memory, occupancy, instructions.

    python -m fastconv.testing.cubin --arch 80 90a 100a [--brief]

prints the table, in brief in Markdown with a line for all instances of a kernel. Needs nvcc and the sources (a
checkout); instructions need cuobjdump, from the CUDA toolkit or Triton.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "csrc"
ARCHITECTURES = ("80", "90a", "100a")
# Of a streaming multiprocessor (CUDA programming guide, "Technical Specifications per Compute Capability").
SHARED = {"80": 164 << 10, "90a": 228 << 10, "100a": 228 << 10}
REGISTERS, THREADS, BLOCKS, WARP = 65536, 2048, 32, 32
REGISTER_UNIT = 256  # registers are given to a warp in such pieces
RESERVED = 1 << 10  # bytes of shared memory that each block costs beside its own


@dataclass(frozen=True)
class Entry:
    """One compiled kernel. spilled: bytes of stack and spills. shared: bytes of a block, where the kernel's name states
    them. threads: of a block, at most.
    """

    name: str
    mangled: str
    architecture: str
    registers: int
    spilled: int
    shared: int
    threads: int

    @property
    def blocks(self) -> int:
        """How many blocks a multiprocessor holds at once."""
        warps = self.threads // WARP
        a_warp = -(-self.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = REGISTERS // (a_warp * warps)
        by_shared = SHARED[self.architecture] // (self.shared + RESERVED)
        return min(BLOCKS, THREADS // self.threads, by_registers, by_shared)

    @property
    def occupancy(self) -> float:
        """Share of the threads that a multiprocessor could hold."""
        return self.blocks * self.threads / THREADS


def files() -> list[Path]:
    """Sources that hold kernels."""
    return sorted(SOURCES.glob("cuda/*/*.cu"))


@cache
def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the PATH."
    return None if SOURCES.exists() else f"There are no sources in {SOURCES}."


def compiled(source: Path, architecture: str, folder: Path) -> list[Entry]:
    """Compiles one source into ``folder``, as the object ``<stem>.o``; raises RuntimeError with nvcc's words."""
    generated = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = ["nvcc", "-std=c++20", "-O3", f"-I{SOURCES}", generated, "-Xcompiler=-fPIC", "-c", "-Xptxas=-v"]
    command += ["--keep", f"--keep-dir={folder}", f"-o={folder / source.stem}.o", source]
    shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(f"nvcc cannot compile {source.name} for sm_{architecture}: {shown.stderr[-2000:]}")
    if found := re.search(r".*(?:wgmma\S* instructions are serialized|setmaxnreg).*", shown.stderr):
        raise RuntimeError(f"nvcc gives up speed in {source.name}: {found.group()}")
    (ptx,) = folder.glob(f"{source.stem}*.ptx")
    bounds = dict(re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx.read_text()))
    pattern = (
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers"
    )
    entries = []
    for mangled, stack, stores, loads, registers in re.findall(pattern, shown.stderr, re.DOTALL):
        name = demangled(mangled)
        stated = re.search(r"(?:igemm|group_wgrad)<.*, (?:\(int\))?(\d+)>\(", name)
        shared = int(stated.group(1)) if stated else 0
        spilled = int(stack) + int(stores) + int(loads)
        entries.append(Entry(short(name), mangled, architecture, int(registers), spilled, shared, int(bounds[mangled])))
    return entries


def demangled(name: str) -> str:
    """The C++ name of a symbol, by binutils; the symbol itself where they are not installed."""
    if shutil.which("c++filt") is None:
        return name
    return subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()


def short(name: str) -> str:
    """A demangled name without its namespaces and parameters."""
    name = re.sub(r"fastconv::|device::|\(anonymous namespace\)::|\((int|bool)\)|void ", "", name)
    return name.split(">(")[0] + ">" if ">(" in name else name


@cache
def disassembler() -> Path | None:
    """cuobjdump of the toolkit, or of Triton's package."""
    if found := shutil.which("cuobjdump"):
        return Path(found)
    spec = find_spec("triton")
    path = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else None
    return path if path and path.exists() else None


def instructions(compiled: Path) -> dict[str, str]:
    """The machine code of each kernel of an object, by mangled name."""
    shown = subprocess.run([disassembler(), "-sass", compiled], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : (\w+)", shown)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def entries(architecture: str) -> list[tuple[str, Entry]]:
    """Every kernel of every source, with the folder it lies in."""
    found = []
    for source in files():
        with tempfile.TemporaryDirectory() as folder:
            own = compiled(source, architecture, Path(folder))
        found += [(source.parent.name, entry) for entry in sorted(own, key=lambda e: e.name)]
    return found


def table(architectures: list[str]) -> str:
    """Kernels x registers x spills x shared memory x occupancy."""
    lines = [f"{'arch':>5} {'regs':>4} {'spill':>5} {'shared':>7} {'threads':>7} {'blocks':>6} {'occup.':>6}  kernel"]
    for architecture in architectures:
        for folder, e in entries(architecture):
            lines.append(
                f"{architecture:>5} {e.registers:4d} {e.spilled:5d} {e.shared:7d} {e.threads:7d} {e.blocks:6d} "
                f"{e.occupancy:6.0%}  {folder}/{e.name}"
            )
    return "\n".join(lines)


def brief(architectures: list[str]) -> str:
    """The same in Markdown, the instances of a kernel on one line: the range of each figure."""
    lines = ["| kernel | sm | instances | registers | spills | shared memory | blocks | occupancy |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for architecture in architectures:
        groups: dict[str, list[Entry]] = {}
        for folder, entry in entries(architecture):
            groups.setdefault(f"{folder}/{entry.name.split('<')[0]}", []).append(entry)
        lines += [brief_line(name, architecture, group) for name, group in groups.items()]
    return "\n".join(lines)


def brief_line(name: str, architecture: str, group: list[Entry]) -> str:
    """One line of :func:`brief`."""

    def span(values: list[float], form: str = "d") -> str:
        low, high = (format(v, form) for v in (min(values), max(values)))
        return low if low == high else f"{low} to {high}"

    cells = [name, architecture, str(len(group)), span([e.registers for e in group]), span([e.spilled for e in group])]
    cells += [span([e.shared for e in group]), span([e.blocks for e in group])]
    return f"| {' | '.join([*cells, span([e.occupancy for e in group], '.0%')])} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--brief", action="store_true", help="Markdown, a line for all instances of a kernel")
    options = parser.parse_args()
    if missing():
        raise SystemExit(missing())
    print(brief(options.arch) if options.brief else table(options.arch))


if __name__ == "__main__":
    main()
