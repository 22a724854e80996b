"""NVIDIA's compute-sanitizer over every kernel: each is started on small problems, in one process a tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu import behave, plan
from fastconv.kernels import pairs, triton
from fastconv.kernels.pairs import Pair
from fastconv.problem import Problem
from fastconv.reference_map import OPS as MAPS
from fastconv.registry import Kernel
from fastconv.testing import check, gpu_cases, hardware, inputs
from fastconv.testing.check_map import case as map_case
from fastconv.testing.check_norm import case as norm_case
from fastconv.testing.check_pair import behind, check_pair
from fastconv.testing.check_pool import case as pool_case

PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")
SECONDS = 540
LOG = 3000  # characters that are kept
EACH = 2  # problems of a kernel, of each dtype that it knows
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error)")
TOUCHED = "TOUCHED "
PAIRED = "n2c72h9w11_k72r3s3_p1_g72_f16nhwc_bias_relu6"


def small(kernel: Kernel) -> Iterator[Problem]:
    """The problems each kernel is started on: of each dtype the first of its corpus, in either layout."""
    for dtype in gpu_cases.dtypes(kernel):
        layouts = set()
        for problem in gpu_cases.problems(kernel, dtype):
            if problem.layout not in layouts:
                layouts.add(problem.layout)
                yield problem
            if len(layouts) == EACH:
                break


def touch() -> None:
    """Starts every kernel and function, checks nothing, and prints its name: what a sanitizer watches."""
    for kernel in plan.kernels():
        there = hardware.through(kernel)
        for i, problem in enumerate(small(kernel)):
            if kernel.op == "conv2d":
                check.run_guarded(there, problem, inputs.make(problem, i, integer=False))
            else:
                _touch(there, problem, i)
        print(TOUCHED + kernel.name, flush=True)
    for i, pair in enumerate(touched_pairs()):
        first = Problem(PAIRED).replace(dtype="f32" if pair.name.endswith("_simt") else "f16")
        check_pair(hardware.pair_through(pair).run, first, behind(first, 72, "_bias_relu"), i, integer=True)
        print(TOUCHED + pair.name, flush=True)
    for text in touched_functions():
        behave.prepared_functions((text,))
        print(TOUCHED + text, flush=True)


def touched_pairs() -> list[Pair]:
    """Kernels of two problems; Triton's is among the functions."""
    return [pair for pair in pairs.pairs() if pair.devices == ("cuda",)]


def touched_functions() -> tuple[str, ...]:
    """Functions of several Triton kernels, where it is installed."""
    return behave.FUNCTIONS if triton.missing() is None else ()


def _touch(kernel: Kernel, problem: Problem, seed: int) -> None:
    pool = not problem.is_norm and problem.op not in MAPS
    case = pool_case if pool else norm_case if problem.is_norm else map_case
    oracle = case(problem, "normal", seed)
    expected = oracle[1] if pool else oracle.expected
    tensors = dict(oracle[0] if pool else oracle.tensors)
    format = inputs.memory_format(problem)
    tensors = {k: t.contiguous(memory_format=format) if t.dim() == 4 else t for k, t in tensors.items()}
    if problem.index != "none" and "index" not in tensors:
        kind = {"u8": torch.uint8, "i64": torch.int64}[problem.index]
        tensors["index"] = torch.zeros(expected.shape, dtype=kind).contiguous(memory_format=format)
    if problem.is_norm and oracle.stats is not None:
        tensors["stats"] = torch.zeros(oracle.stats.shape)
    numbers = oracle.numbers if problem.is_norm else {}
    shape = list(expected.shape)
    if problem.out_channels:
        shape[1] = problem.out_channels
    out = torch.zeros(shape, dtype=torch.float32 if expected.dim() == 2 else inputs.DTYPES[problem.dtype])
    if out.dim() == 4:
        out = out.contiguous(memory_format=inputs.written_format(problem))
    kernel.run(problem, out=out, **tensors, **numbers)


def program() -> str | None:
    """Where compute-sanitizer is, or None."""
    paths = os.pathsep.join((os.environ.get("PATH", ""), *PLACES))
    return shutil.which("compute-sanitizer", path=paths)


def reports(log: str) -> int | None:
    """How many errors the tool's last summary counts; None where it printed none."""
    found = SUMMARY.findall(log)
    return sum(int(one or other) for one, other in found) if found else None


def check_tool(tool: str) -> dict:
    """Runs one tool over :func:`touch`."""
    found = program()
    if found is None:
        return {"outcome": "error", "reason": "compute-sanitizer is not installed."}
    command = [found, "--tool", tool, "--target-processes", "all", sys.executable, "-m", "benchmarks.gpu.sanitize"]
    # Every tensor gets memory of its own, so that the tools see where it ends.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=environment, cwd=root, errors="replace"
    )
    log = done.stdout + done.stderr
    errors, touched = reports(log), log.count(TOUCHED)
    wanted = len(plan.kernels()) + len(touched_pairs()) + len(touched_functions())
    facts = {"reports": errors, "kernels": touched}
    if errors is None or touched < wanted:
        said = f"Only {touched} of {wanted} kernels were started under {tool}; its status was {done.returncode}. "
        return facts | {"outcome": "error", "reason": said + log[-LOG:]}
    if errors:
        return facts | {"outcome": "wrong", "reason": f"{tool} reports {errors} errors. {log[:LOG]}"}
    return facts | {"outcome": "ok"}


if __name__ == "__main__":
    touch()
