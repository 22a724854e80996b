"""Memory of whole networks in one command: eager, as a plan from a file, and through the peers that are installed.

    python benchmarks/network_memory.py [--readme README.md] [--networks resnet18,vgg16] [--peers onnxruntime]

float32, 224x224, batch 1 and 8, random weights, models of torchvision. Every way has a process of its own that imports
what it needs, makes the network ready and runs it three times. Counted is what that adds to the process's memory: the
most at any time (with what loading needs), and what is there at the end. Writes memory.json and memory.md under
benchmarks/results/<machine>/. Linux only: the figures are those of /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from network_table import BATCHES, NETWORKS, SIZE
from rich.progress import Progress
from speed_table import FOLDER, insert, one_of

from fastconv.cli.arguments import source
from fastconv.profiling import results
from fastconv.profiling.machine import Machine, this_machine
from fastconv.testing import ways

MARKS = ("<!-- memory-table -->", "<!-- /memory-table -->")
RUNS = 3
MEGABYTE = 1e6


@dataclass(frozen=True)
class Footprint:
    """Bytes that a network added to its process: the most at any time, and after the last run."""

    network: str
    batch: int
    way: str
    most: int
    stays: int


# --- in a process of its own ------------------------------------------------------------------------------------------


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _eager(folder: Path, name: str) -> Callable[[torch.Tensor], Any]:
    return source(f"torchvision:{name}").model.eval().to(memory_format=torch.channels_last)


def _plan(folder: Path, name: str) -> Callable[[torch.Tensor], Any]:
    from fastconv.graph import load_plan

    return load_plan(folder / "plan.safetensors")


def _compiled(folder: Path, name: str) -> Callable[[torch.Tensor], Any]:
    return ways.compiled(_eager(folder, name), torch.load(folder / "x.pt")).call


def _onnxruntime(folder: Path, name: str) -> Callable[[torch.Tensor], Any]:
    return ways.onnxruntime_session(str(folder / "model.onnx"))


def _openvino(folder: Path, name: str) -> Callable[[torch.Tensor], Any]:
    return ways.openvino_request(str(folder / "model.onnx"))


WAYS = {"eager": _eager, "plan": _plan, "compile": _compiled, "onnxruntime": _onnxruntime, "openvino": _openvino}


def run_alone(way: str, folder: Path, name: str) -> None:
    """Makes the network ready, runs it, and prints what that took as JSON."""
    source("torchvision:resnet18")  # imports of every way
    if way in ways.PEERS and way != "compile":
        __import__(way)
    x = torch.load(folder / "x.pt")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = _status("VmRSS")
    call = WAYS[way](folder, name)
    with torch.no_grad():
        for _ in range(RUNS):
            call(x)
    print(json.dumps({"most": _status("VmHWM") - before, "stays": _status("VmRSS") - before}))


# --- all of them ------------------------------------------------------------------------------------------------------


def measure(name: str, batch: int, wanted: list[str], folder: Path) -> tuple[list[Footprint], list[str]]:
    """The footprints, and why a way has none."""
    from fastconv.graph import optimize

    model = source(f"torchvision:{name}").model.eval()
    x = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.save(x, folder / "x.pt")
    optimize(model, x).save(folder / "plan.safetensors")
    if {"onnxruntime", "openvino"} & set(wanted):
        (folder / "model.onnx").write_bytes(ways.onnx(model, x))
    del model
    found, missing = [], []
    for way in wanted:
        command = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--alone",
            way,
            "--folder",
            str(folder),
            "--networks",
            name,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            missing.append(f"{name} {batch}, {way}: {done.stderr.strip().splitlines()[-1]}")
        else:
            found.append(Footprint(name, batch, way, **json.loads(done.stdout.splitlines()[-1])))
    return found, missing


def markdown(machine: Machine, footprints: list[Footprint], missing: list[str]) -> str:
    """The table: megabytes, the most and what stays; the plan beside the least of the peers."""
    names = list(dict.fromkeys(f.way for f in footprints))
    lines = [
        f"{machine.cpu}, {machine.threads} threads, {machine.isa}; torch {machine.torch}, commit {machine.commit}, "
        f"{machine.date[:10]}. MB that a network adds to its process, 224x224, float32: at most / in the end.",
        "",
        f"| network, batch | {' | '.join(names)} | plan against the least of the peers |",
        f"|{'---|' * (len(names) + 2)}",
    ]
    cases = dict.fromkeys((f.network, f.batch) for f in footprints)
    for case in cases:
        here = {f.way: f for f in footprints if (f.network, f.batch) == case}
        cells = [f"{here[n].most / MEGABYTE:.0f} / {here[n].stays / MEGABYTE:.0f}" if n in here else "-" for n in names]
        peers = [f for way, f in here.items() if way in ways.PEERS]
        ratio = "-"
        if peers and "plan" in here:
            most, stays = min(f.most for f in peers), min(f.stays for f in peers)
            ratio = f"{here['plan'].most / most:.2f}x / {here['plan'].stays / stays:.2f}x"
        lines.append(f"| {case[0]} {case[1]} | {' | '.join(cells)} | {ratio} |")
    return "\n".join([*lines, *(["", *missing] if missing else [])]) + "\n"


def main() -> int:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = tuple(ways.PEERS)
    parser.add_argument("--networks", type=one_of(NETWORKS), default=list(NETWORKS), help=f"of {','.join(NETWORKS)}")
    parser.add_argument("--batches", type=one_of(("1", "8")), default=list(map(str, BATCHES)), help="of 1,8")
    parser.add_argument("--peers", type=one_of(peers), default=list(peers), help=f"of {','.join(peers)}")
    parser.add_argument("--readme", type=Path, help="a file whose memory table is replaced")
    parser.add_argument("--output", type=Path, help="folder of the results instead of benchmarks/results/<machine>")
    parser.add_argument("--alone", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        run_alone(options.alone, options.folder, options.networks[0])
        return 0
    machine, found, missing = this_machine(), [], []
    folder = options.output or FOLDER / machine.slug
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as bar:
        task = bar.add_task("measuring", total=len(options.networks) * len(options.batches))
        for name in options.networks:
            for batch in map(int, options.batches):
                bar.update(task, description=f"{name}, batch {batch}")
                with tempfile.TemporaryDirectory() as kept:
                    some, reasons = measure(name, batch, ["eager", "plan", *options.peers], Path(kept))
                found, missing = found + some, missing + reasons
                bar.advance(task)
    table = markdown(machine, found, missing)
    content = {"kind": "memory_table", "machine": machine.as_dict(), "results": [asdict(f) for f in found]}
    results.write(folder / "memory.json", content, lines="results")
    (folder / "memory.md").write_text(table)
    if options.readme:
        insert(options.readme, table, MARKS)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
