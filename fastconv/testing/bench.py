"""Benchmarks one problem: every kernel of the list that accepts it, and PyTorch in both layouts, checked and in turns.

A row is only timed when its result is right. Every call allocates its result, as a user's call does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor

from fastconv import dispatch
from fastconv._native import C
from fastconv.problem import Problem
from fastconv.profiling import machine, timer
from fastconv.profiling.roofline import Ceilings
from fastconv.profiling.timer import Timing
from fastconv.registry import Kernel
from fastconv.testing import inputs, norm_case, oracle, peer

# FLOPs beyond which the scalar references are left out: they would take a second and more a call.
REFERENCE_LIMIT = 1e8
# Buffers rotated through in a cold run are together this many times the last cache.
COLD_FACTOR = 2


@dataclass(frozen=True)
class Row:
    """One kernel on one problem in one layout.

    timing is None when the row was not timed; reason then says why in one sentence. wrong: its result was not right.
    """

    kernel: str
    layout: str
    timing: Timing | None
    reason: str | None = None
    wrong: bool = False
    chosen: bool = False

    @property
    def is_torch(self) -> bool:
        return self.kernel.endswith("_aten")


@dataclass(frozen=True)
class Result:
    """All rows of one problem. limit: the least seconds it can take here; bound: by what."""

    problem: Problem
    rows: tuple[Row, ...]
    limit: float
    bound: str
    checked_against: str

    @property
    def torch_best(self) -> Row | None:
        """PyTorch in the layout it is faster in."""
        return min((r for r in self.rows if r.is_torch and r.timing), key=lambda r: r.timing.median, default=None)

    @property
    def chosen(self) -> Row | None:
        """The kernel the dispatcher takes, when it was timed."""
        return next((r for r in self.rows if r.chosen and r.timing), None)

    @property
    def standing(self) -> float | None:
        """Time of the better torch layout / time of the chosen kernel."""
        if self.torch_best is None or self.chosen is None:
            return None
        return self.torch_best.timing.median / self.chosen.timing.median

    def as_dict(self) -> dict[str, object]:
        """For JSON: times in seconds, ``limit_share`` and ``standing`` as fractions."""
        best = self.torch_best
        rows = []
        for row in self.rows:
            entry = asdict(row)
            if row.timing:
                entry["timing"]["limit_share"] = self.limit / row.timing.median
                entry["timing"]["standing"] = best.timing.median / row.timing.median if best else None
            rows.append(entry)
        return {
            "problem": str(self.problem),
            "flops": self.problem.flops,
            "bytes": self.problem.bytes,
            "limit": self.limit,
            "bound": self.bound,
            "checked_against": self.checked_against,
            "standing": self.standing,
            "rows": rows,
        }


@dataclass(frozen=True)
class Entrant:
    """A kernel in a layout with everything to call it."""

    kernel: Kernel
    problem: Problem
    chosen: bool

    @property
    def key(self) -> str:
        return f"{self.kernel.name} {self.problem.layout}"

    def call(self, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
        """One call that allocates its result: PyTorch's as PyTorch does, ours as our operators do."""
        if self.kernel.is_torch:
            return peer.torch_call(self.problem, tensors) or partial(self.kernel.run, self.problem, **tensors)
        run, problem, blank = self.kernel.run, self.problem, _blank(self.problem)
        return lambda: run(problem, out=C.empty_result(blank), **tensors)


def entrants(problem: Problem, pattern: str = "*") -> tuple[list[Entrant], list[Row]]:
    """Who takes part, and the rows of those who do not."""
    candidates = dispatch.candidates(problem)
    chosen = dispatch.plan(problem).name if any(c.reason is None for c in candidates) else None
    taking_part, out = [], []
    for candidate in candidates:
        kernel, reason = candidate.kernel, candidate.reason
        is_chosen = kernel.name == chosen
        if reason is None and kernel.is_reference and problem.flops > REFERENCE_LIMIT and not is_chosen:
            reason = f"A reference is left out beyond {REFERENCE_LIMIT:.0e} FLOP; the problem has {problem.flops:.2g}."
        if not kernel.is_torch and not is_chosen and not fnmatchcase(kernel.name, pattern):
            reason = reason or f"The pattern {pattern!r} does not name it."
        if reason is not None:
            out.append(Row(kernel.name, problem.layout, None, reason))
            continue
        taking_part.append(Entrant(kernel, problem, is_chosen))
        if kernel.is_torch and problem.op != "reorder2d":
            other = problem.replace(layout="nchw" if problem.layout == "nhwc" else "nhwc")
            taking_part.append(Entrant(kernel, other, False))
    return taking_part, out


def _blank(problem: Problem) -> Tensor:
    """The tensor a native kernel writes, without storage."""
    name = inputs.written(problem)
    shape = list(inputs.shapes(problem)[name])
    if problem.out_channels:
        shape[1] = problem.out_channels
    if problem.is_norm and name == "w":
        return torch.empty(shape, dtype=norm_case.arithmetic(problem), device="meta")
    blank = torch.empty(shape, dtype=inputs.DTYPES[problem.dtype], device="meta")
    return blank.contiguous(memory_format=inputs.written_format(problem))


def operand_sets(tensors: dict[str, Tensor], problem: Problem, cold: bool) -> list[dict[str, Tensor]]:
    """Operands in the problem's layout, weights included: one set, or copies that overflow the last cache together."""
    format = inputs.memory_format(problem)
    turned = problem.op != "attention"  # whose operands have strides of their own
    first = {name: t.contiguous(memory_format=format) if t.dim() == 4 and turned else t for name, t in tensors.items()}
    size = sum(t.numel() * t.element_size() for t in first.values())
    copies = COLD_FACTOR * machine.last_cache() // max(1, size) if cold else 0
    return [first, *({name: t.clone() for name, t in first.items()} for _ in range(copies))]


def bench(
    problem: Problem,
    ceilings: Ceilings,
    *,
    pattern: str = "*",
    cold: bool = False,
    seconds: float = 0.2,
    on_turn: Callable[[], object] | None = None,
) -> Result:
    """Checks and times every kernel that accepts the problem.

    pattern: shell-style, limits the kernels besides PyTorch's and the dispatcher's choice.
    cold: every call reads operands that are in no cache; else the same operands over and over.
    seconds: of timing for each row.
    """
    taking_part, rows = entrants(problem, pattern)
    limits = ceilings.limit(problem, cold), ceilings.bound(problem, cold)
    if not taking_part:
        return Result(problem, tuple(rows), *limits, checked_against="nothing: no kernel takes part")
    exact = oracle.ask(problem)
    layouts = {entrant.problem.layout for entrant in taking_part}
    sets = {layout: operand_sets(exact.tensors, problem.replace(layout=layout), cold) for layout in layouts}
    calls: dict[str, list[Callable[[], object]]] = {}
    for entrant in taking_part:
        variants = [entrant.call(t) for t in sets[entrant.problem.layout]]
        tensors = sets[entrant.problem.layout][0]
        if exact.indices:
            tensors["index"].fill_(oracle.UNWRITTEN)  # whoever came before may have been right
        wrong = exact.verdict_of_call(variants[0](), tensors, entrant.kernel.name)
        if wrong:
            rows.append(
                Row(entrant.kernel.name, entrant.problem.layout, None, wrong, wrong=True, chosen=entrant.chosen)
            )
        else:
            calls[entrant.key] = variants
    timings = timer.in_turns(calls, seconds, on_turn)
    timed = [
        Row(e.kernel.name, e.problem.layout, timings[e.key], chosen=e.chosen) for e in taking_part if e.key in timings
    ]
    return Result(problem, (*timed, *rows), *limits, exact.source)
