"""Random pooling problems for :mod:`fastconv.testing.fuzz`."""

from __future__ import annotations

import random

from fastconv.problem import Problem

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 70, 130)
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 23, 31, 33, 39, 67)
WINDOWS = (1, 2, 2, 3, 3, 3, 4, 5, 7, 11)
INDICES = {"maxpool2d": ("none", "u8", "u8", "i64"), "adaptivemax2d": ("none", "i64"), "unpool2d": ("i64",)}
MAX_ELEMENTS = 12_000  # of the larger side: keeps one check at milliseconds


def random_problem(rng: random.Random, op: str, pass_: str) -> Problem:
    """Any pool of this op and pass: every dtype, layout, geometry and kind of index."""
    while True:
        problem = _candidate(rng, op, pass_)
        if problem is not None and max(_elements(problem)) <= MAX_ELEMENTS:
            return problem


def _elements(problem: Problem) -> tuple[int, int]:
    planes, h, w = problem.n * problem.c, problem.h, problem.w
    return planes * h.size * w.size, planes * h.out * w.out


def _axis(rng: random.Random, ceil: bool, average: bool) -> tuple[int, ...] | None:
    """Size, window, stride, padding and dilation of one axis, or None when no window fits."""
    size, window = rng.choice(SIZES), rng.choice(WINDOWS)
    dilation = 1 if average else rng.choice((1, 1, 1, 2, 3))
    stride, reach = rng.choice((1, 1, 2, 2, 3, 4, window)), dilation * (window - 1) + 1
    padding = rng.choice((0, 0, min(1, reach // 2), reach // 2))
    span = size + 2 * padding - reach
    return (size, window, stride, padding, dilation) if span + (stride - 1 if ceil else 0) >= 0 else None


def _candidate(rng: random.Random, op: str, pass_: str) -> Problem | None:
    dtype, layout = rng.choice(("f32", "f64", "f16", "bf16")), rng.choice(("nchw", "nhwc"))
    n, c = rng.choice((1, 1, 2, 3)), rng.choice(CHANNELS)
    common = {"pass_": pass_, "index": rng.choice(INDICES.get(op, ("none",)))}
    if op in ("adaptivemax2d", "adaptiveavg2d", "unpool2d"):
        h, w, p, q = (rng.choice(SIZES) for _ in range(4))
        if rng.random() < 0.2:
            p = q = 1
        return _sliced(rng, Problem(f"{op}_n{n}c{c}h{h}w{w}_o{p}x{q}_{dtype}{layout}").replace(**common))
    ceil = rng.random() < 0.4
    h, w = (_axis(rng, ceil, op == "avgpool2d") for _ in range(2))
    if h is None or w is None:
        return None
    if op == "avgpool2d":
        common |= {"count_include_pad": rng.random() < 0.5, "divisor_override": rng.choice((0, 0, 0, 3, -7))}
    text = (
        f"{op}_n{n}c{c}h{h[0]}w{w[0]}_r{h[1]}s{w[1]}_u{h[2]}x{w[2]}_p{h[3]}x{w[3]}_d{h[4]}x{w[4]}_{dtype}{layout}"
        f"{'_ceil' if ceil else ''}"
    )
    return _sliced(rng, Problem(text).replace(**common))


def _sliced(rng: random.Random, problem: Problem) -> Problem:
    """The same into a slice of channels, at times, where a pool writes one."""
    if problem.op == "unpool2d" or problem.pass_ != "fprop" or problem.index != "none" or rng.random() < 0.7:
        return problem
    before = rng.randint(0, 9)
    return problem.replace(out_offset=before, out_channels=before + problem.c + rng.randint(0, 9))
