"""Which steps run together in strips of rows (csrc/plan/strips.h), so that what passes between them stays in a core's
own caches: an inverted residual block's convolutions, a first convolution and its pool, a norm and the 1x1 behind it.

Two steps apart share out rows, pixels or channels each in its own way, so that half of what the second reads lies in
the other core's caches, and a result of some megabytes in none. In strips every filter is read anew for each of them.
Measured on the blocks of mobilenet_v2 and efficientnet_b0, batch 1 and 8 (Zen 4, 2 threads, 2026-11-22): 0.97 to 1.5
times as fast as apart, the most where cores are far from each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastconv._native import C
from fastconv.graph.values import Stage, Step

OF_L2 = 0.5  # what passes between a thread's steps, and their workspace, may fill of it
MOST_ROWS, FEWEST_ROWS = 16, 2  # of a strip


def join(steps: Sequence[Step], threads: int) -> list[Stage]:
    """The steps as stages, in an order in which each finds what it reads."""
    readers = Counter(buffer for step in steps for buffer in {value.buffer for value in step.reads.values()})
    writers = Counter(step.out.buffer for step in steps)
    stages: list[Stage] = []
    for step in steps:
        before = next((stage for stage in stages if stage.steps[-1].out == step.reads.get("x")), None)
        if before is not None:
            last, value = before.steps[-1], before.steps[-1].out
            alone = value.buffer.where == "arena" and readers[value.buffer] == writers[value.buffer] == 1
            joined = [*before.steps, step]
            pays = alone and _has_rows(last) and _has_rows(step) and _pays(last, step, threads)
            if pays and (height := _height(joined, threads)):
                stages.remove(before)
                stages.append(Stage(joined, height))
                continue
        stages.append(Stage([step]))
    return stages


def _has_rows(step: Step) -> bool:
    """Whether a row's bits do not depend on which rows are computed with it, as they do in Winograd's tiles."""
    return not step.selection.kernel.algorithm.startswith("winograd")


def _pays(first: Step, second: Step, threads: int) -> bool:
    """Whether what passes between two steps is more than what comes of it, and takes longer to pass than the rows do
    that two threads both compute. A filter larger than L2 wants the whole map."""
    value, problem = first.out, second.selection.problem
    if value.elements < second.out.elements:
        return False
    if any(_filter_bytes(step) > C.caches()[1] for step in (first, second)):
        return False
    core_flops, _, _, memory_bytes = C.nominal_rates(first.selection.kernel.native)  # in a second
    neighbours = 0 if value.n % threads == 0 else min(threads - 1, 2)  # threads with rows of the same image
    kept = max(0, problem.h.dilation * (problem.h.window - 1) + 1 - problem.h.stride)
    twice = neighbours * kept / 2 * first.selection.problem.flops / (value.n * value.h)
    return twice / core_flops < 2 * value.bytes / memory_bytes


def _filter_bytes(step: Step) -> int:
    filter = step.constants.get("packed", step.constants.get("w"))
    return filter.nbytes if filter is not None else 0


def _height(steps: list[Step], threads: int) -> int:
    """The most rows of the last step's result of which a strip stays in L2; 0 where that is too few, or where a kernel
    runs no strips."""
    links, problem = [step.kernel_and_problem for step in steps], steps[-1].selection.problem
    rows = min(problem.h.out, -(-problem.n * problem.h.out // threads))
    fewest, most = min(FEWEST_ROWS, rows), min(MOST_ROWS, rows)
    limit = OF_L2 * C.caches()[1]
    try:
        while most >= fewest and C.strip_bytes(links, most) > limit:
            most -= 1
    except ValueError:
        return 0
    return most if most >= fewest else 0
