"""Why a problem runs on the kernel it runs on: every candidate with its sentence, the chosen one and what it costs.

Nothing is decided here; :mod:`fastconv.dispatch` decides, and this module shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastconv import dispatch
from fastconv._native import C
from fastconv.nn import Row, swap
from fastconv.problem import Problem
from fastconv.registry import Kernel

_BYTES = {"f64": 8, "f32": 4, "tf32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Line:
    """One kernel of the list. ``reason`` is None when it could run; ``workspace`` None when it does not tell;
    ``seconds`` is its estimate where kernels are compared by cost.
    """

    kernel: str
    reason: str | None
    workspace: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """How one problem is decided on one device.

    lines: every kernel of its op and pass, in order of preference. chosen: the one that runs.
    notes: layout copies and determinism, one sentence each.
    """

    problem: Problem
    device: str
    lines: tuple[Line, ...]
    chosen: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(line.kernel) for line in self.lines)
        rows = [f"  {line.kernel.ljust(width)}  {self._verdict(line)}" for line in self.lines]
        notes = [f"  {note}" for note in self.notes]
        return "\n".join([f"{self.problem} on {self.device}: {self.chosen}", *rows, *notes])

    def _verdict(self, line: Line) -> str:
        estimate = "" if line.seconds is None else f", estimated {line.seconds * 1e3:.3g} ms"
        if line.kernel != self.chosen:
            return f"could run{estimate}" if line.reason is None else f"no: {line.reason}"
        cost = estimate + ("" if line.workspace is None else f", {_size(line.workspace)} of workspace")
        return f"chosen{cost}" if line.reason is None else f"chosen{cost}, as no other is left: {line.reason}"


@dataclass(frozen=True)
class Explanation:
    """One choice for each problem, and one sentence for each layer that fastconv leaves to PyTorch."""

    choices: tuple[Choice, ...]
    outside: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.choices), *(["\n".join(self.outside)] if self.outside else [])])

    def __repr__(self) -> str:
        return str(self)


def explain(subject: Problem | str | nn.Module, example: Any = None, device: str = "cpu") -> Explanation:
    """Every kernel that could run the problem, with the sentence that keeps it from running, and the chosen one.

    subject: a problem, its string, or a module; a module's problems are those it meets in one pass over ``example``
        (its input, a tuple of arguments or a dict of keyword arguments), and it is left as it was.
    device: the device type a problem is planned for; a module is explained where its example runs.

    Raises ValueError for a string that is no problem and for a module without an example, TypeError for anything else.

    >>> print(fastconv.explain("n8c64h56w56_k64r3s3_p1_f32nhwc"))
    """
    if isinstance(subject, str):
        subject = Problem(subject)
    if isinstance(subject, Problem):
        return Explanation((_choice(subject, torch.device(device).type),))
    if not isinstance(subject, nn.Module):
        raise TypeError(
            f"explain takes a Problem, its string or a torch.nn.Module, but got {subject!r} "
            f"of type {type(subject).__name__}."
        )
    return _explain_module(subject, example)


def _explain_module(module: nn.Module, example: Any) -> Explanation:
    report = swap(module, dry_run=True, example_inputs=example)
    if not report.rows:
        return Explanation((), ("The module has no convolution, pool or norm of ours; PyTorch's own operators run.",))
    if example is None and report.swapped:
        raise ValueError("explain needs an example input: a module's problems depend on what it is given.")
    layers: dict[Problem, list[Row]] = {}
    for row in report.rows:
        for problem in dict.fromkeys(call.problem for call in (row.seen.calls if row.seen else ())):
            layers.setdefault(problem, []).append(row)
    device = _device(module, example)
    choices = tuple(_choice(problem, device, rows) for problem, rows in layers.items())
    return Explanation(choices, tuple(_outside(row) for row in report.rows if not (row.seen and row.seen.calls)))


def _choice(problem: Problem, device: str, layers: list[Row] | None = None) -> Choice:
    chosen = dispatch.plan(problem, device)
    candidates = dispatch.candidates(problem, device)
    lines = tuple(Line(c.kernel.name, c.reason, _workspace(c.kernel, problem), c.seconds) for c in candidates)
    notes = (_layout_note(problem, layers), _determinism_note(chosen))
    if layers:
        names = ", ".join(row.name or "(the module)" for row in layers)
        notes = (f"Layers: {names}.", *notes)
    return Choice(problem, device, lines, chosen.name, notes)


def _workspace(kernel: Kernel, problem: Problem) -> int | None:
    """Bytes of scratch memory with torch's current number of threads; None for kernels that keep that to themselves."""
    if (kernel.native is None and kernel.gpu is None) or kernel.refuses(problem) is not None:
        return None
    if kernel.gpu is not None:
        return C.gpu_workspace(kernel.gpu, problem)
    return C.workspace(kernel.native, problem, torch.get_num_threads())


def _layout_note(problem: Problem, layers: list[Row] | None) -> str:
    copied = sum(row.seen.copied_bytes for row in layers or ())
    if layers and copied == 0:
        return f"Layout: {problem.layout}, and so the input came: nothing was copied."
    if layers:
        return f"Layout: {problem.layout}; the input came otherwise, and {_size(copied)} were copied."
    if problem.dtype not in _BYTES:
        return f"Layout: {problem.layout}; an input that lies otherwise is copied first."
    x = problem.n * problem.c * problem.h.size * problem.w.size
    y = problem.n * problem.k * problem.h.out * problem.w.out
    elements = {"fprop": x, "dgrad": y, "wgrad": x + y}[problem.pass_]
    return (
        f"Layout: {problem.layout}; an input that lies otherwise is copied first, "
        f"{_size(elements * _BYTES[problem.dtype])}."
    )


def _determinism_note(kernel: Kernel) -> str:
    if kernel.deterministic:
        return "Deterministic: the same bits in every run, for any number of threads."
    if kernel.is_torch:
        return "Deterministic: as PyTorch's operator; torch.use_deterministic_algorithms() decides."
    return "Deterministic: not known."


def _outside(row: Row) -> str:
    name = row.name or "The module"
    return f"{name} ({row.kind}): {row.kept or row.kernel + '.'}"


def _device(module: nn.Module, example: Any) -> str:
    values = (
        example.values() if isinstance(example, dict) else example if isinstance(example, tuple | list) else [example]
    )
    tensors = [*(value for value in values if isinstance(value, torch.Tensor)), *module.parameters()]
    return tensors[0].device.type if tensors else "cpu"


def _size(count: int) -> str:
    """Bytes in the unit a reader expects, decimal."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"
