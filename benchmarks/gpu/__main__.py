"""Proves and times every GPU kernel, on a machine with an NVIDIA GPU, in slices of ten minutes.

    python -m benchmarks.gpu [--seconds 540] [--output FOLDER] [--only smoke,behave,time] [--list]

Most valuable first: does every kernel run and is it right; the machine's limits; streams, graphs and memory; one timing
of each kind; compute-sanitizer's four tools; every corpus in every dtype and layout against the float64 reference; the
emulator beside the device; every layer of every network beside cuDNN; and torch.compile. Results stand in gpu.json and
gpu.md of the folder (benchmarks/results/<gpu>); run it again, and it goes on where it stopped.

Exit code: 0 when all that ran was right, 1 when something was wrong, 2 when there is nothing to run on.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.gpu import crew, plan, report, state
from fastconv.kernels import cuda
from fastconv.profiling import machine

RESULTS = Path(__file__).parents[1] / "results"
SECONDS = 540  # a slice of ten minutes, and a minute to spare
MOST_JOBS = 8
NOTHING_TO_RUN_ON = 2


def missing() -> str | None:
    """Why nothing can run here, in one sentence, or None."""
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}" if torch.version.cuda else None
        return f"There is no GPU to run on: {built or f'torch {torch.__version__} is a CPU build'}."
    return cuda.refuses_machine("simt")


def slug(name: str) -> str:
    """Name of a GPU's folder of results."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def facts() -> dict[str, str]:
    """What the results were made on."""
    driver = "unknown"
    if asked := shutil.which("nvidia-smi"):
        query = [asked, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip() or driver
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver,
        "torch": torch.__version__,
        "cudnn": str(torch.backends.cudnn.version()),
        "triton": version("triton") if find_spec("triton") else "not installed",
        "device code": cuda.device_code(),
        "commit": machine.commit() or "unknown",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def chosen(units: list[plan.Unit], only: str | None) -> list[plan.Unit]:
    """The units of some kinds; ValueError names a kind that does not exist."""
    if only is None:
        return units
    kinds = list(dict.fromkeys(unit.kind for unit in units))
    if unknown := [kind for kind in only.split(",") if kind not in kinds]:
        raise ValueError(f"{', '.join(unknown)}: the kinds are {', '.join(kinds)}.")
    return [unit for unit in units if unit.kind in only.split(",")]


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what this run may take")
    parser.add_argument("--jobs", type=int, default=min(MOST_JOBS, os.cpu_count() or 1), help="processes side by side")
    parser.add_argument("--output", type=Path, help="folder of the results; default benchmarks/results/<gpu>")
    parser.add_argument("--only", help="kinds of units, separated by commas")
    parser.add_argument("--list", action="store_true", help="print the units in order and stop")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    try:
        units = chosen(plan.units(), options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print(*(f"{unit.seconds:5.0f} s  {unit.name}" for unit in units), sep="\n")
        return 0
    if reason := missing():
        print(reason, file=sys.stderr)
        return NOTHING_TO_RUN_ON
    folder = RESULTS / slug(torch.cuda.get_device_name())
    output = options.output or folder
    found = state.load(output if (output / state.FILE).exists() else folder)
    found["machine"] = facts()
    sources = plan.digest()
    work = plan.pending(units, found["units"], sources)
    wrong = []

    def done(unit: plan.Unit, result: dict) -> None:
        state.record(found, unit.name, sources, result)
        state.save(output, found)
        if result["outcome"] not in ("ok", "skipped"):
            wrong.append(unit.name)
        reason = result.get("reason", "").strip().replace("\n", " ")[:200]
        print(f"{result['outcome']:<11} {result['seconds']:6.1f} s  {unit.name}  {reason}", flush=True)

    print(f"{len(work)} of {len(units)} units are to do, {options.seconds:.0f} s are given.", flush=True)
    crew.carry_out(work, deadline, options.jobs, done)
    (output / "gpu.md").write_text(report.markdown(found, plan.units(), sources))
    left = len(plan.pending(units, found["units"], sources))
    print(f"{len(units) - left} of {len(units)} units have run; {len(wrong)} of this run's were not well.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
