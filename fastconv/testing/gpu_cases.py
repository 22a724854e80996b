"""What a GPU kernel is checked on, in the emulator and on hardware alike: problems of the edge corpora in every dtype
and layout it accepts, random convolutions, and one check of any of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from fastconv.problem import Problem
from fastconv.reference_map import OPS as MAPS
from fastconv.registry import Kernel
from fastconv.testing import corpus, fuzz
from fastconv.testing.check import check_conv
from fastconv.testing.check_map import KINDS as MAP_KINDS
from fastconv.testing.check_map import check_map
from fastconv.testing.check_norm import check_norm
from fastconv.testing.check_pool import KINDS, check_pool
from fastconv.testing.norm_case import KINDS as NORM_KINDS

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("f32", "tf32", "f16", "bf16")
STORED = ("f32", "f16", "bf16")  # what is not multiplied knows no tf32
INDICES = {"maxpool2d": ("none", "u8", "i64"), "adaptivemax2d": ("none", "i64"), "unpool2d": ("i64",)}
PLAIN = {"bias": False, "residual": False, "activation": "none", "alpha": 0.0, "out_offset": 0, "out_channels": 0}
RANDOM_FLOPS = 2e5


def dtypes(kernel: Kernel) -> tuple[str, ...]:
    """Dtypes that a kernel of this op may know."""
    return DTYPES if kernel.op == "conv2d" else STORED


def problems(kernel: Kernel, dtype: str) -> Iterator[Problem]:
    """Problems of its edge corpus that the kernel accepts."""
    made = convolutions if kernel.op == "conv2d" else norms if "norm" in kernel.op else pools
    made = maps if kernel.op in MAPS else made
    return (p for p in made(kernel, dtype) if kernel.computes(p) and kernel.refuses(p) is None)


def convolutions(kernel: Kernel, dtype: str) -> Iterator[Problem]:
    for base in corpus.load("edge_conv"):
        for layout in LAYOUTS:
            changes = {"pass_": kernel.pass_, "layout": layout, "dtype": dtype}
            if kernel.pass_ == "wgrad":
                changes |= PLAIN
            elif kernel.pass_ == "dgrad" and base.out_channels:
                changes |= {"out_channels": base.c + base.out_offset + 5}
            yield base.replace(**changes)


def pools(kernel: Kernel, dtype: str) -> Iterator[Problem]:
    for base in corpus.load("edge_pool"):
        for layout in LAYOUTS:
            for index in INDICES.get(base.op, ("none",)):
                yield base.replace(pass_=kernel.pass_, layout=layout, dtype=dtype, index=index)


def maps(kernel: Kernel, dtype: str) -> Iterator[Problem]:
    for base in corpus.load("edge_map"):
        for layout in LAYOUTS:
            yield base.replace(layout=layout, dtype=dtype)


def norms(kernel: Kernel, dtype: str) -> Iterator[Problem]:
    plain = {} if kernel.pass_ == "fprop" else {"residual": False, "activation": "none", "alpha": 0.0}
    for base in corpus.load("edge_norm"):
        for layout in LAYOUTS:
            for training in (False, True):
                yield base.replace(pass_=kernel.pass_, layout=layout, dtype=dtype, training=training, **plain)


def random_convolutions(kernel: Kernel, count: int, dtypes: tuple[str, ...] = DTYPES) -> list[Problem]:
    """Random problems that the kernel accepts, the same in every run."""
    rng, found = random.Random(kernel.name), []
    while len(found) < count:
        problem = fuzz.random_problem(rng, max_flops=RANDOM_FLOPS, pass_=kernel.pass_)
        problem = problem.replace(dtype=rng.choice(dtypes))
        if kernel.refuses(problem) is None:
            found.append(problem)
    return found


def check(kernel: Kernel, problem: Problem, number: int, integer: bool = True) -> None:
    """One check; ``number`` draws data, alignment, and the order of threads where they are emulated. AssertionError
    names everything that repeats it.

    integer: demand equality; else real values, within their bound. Pools and norms take one of their kinds of data.
    """
    try:
        if kernel.op == "conv2d":
            _check_conv(kernel, problem, number, integer)
        elif "norm" in kernel.op:
            kind, affine = NORM_KINDS[number % len(NORM_KINDS)], bool(number % 4)
            check_norm(kernel, problem, kind=kind, seed=number, offset=number % 16, affine=affine)
        elif kernel.op in MAPS:
            kind = MAP_KINDS[number % len(MAP_KINDS)]
            check_map(kernel, problem, kind=kind, seed=number, offset=(0, number % 16)[number % 2], threads=number)
        else:
            kinds = KINDS[:2] if problem.pass_ == "dgrad" or "avg" in problem.op else KINDS
            offset = (0, number % 16)[number % 2]
            kind = kinds[number % len(kinds)]
            check_pool(kernel, problem, kind=kind, seed=number, offset=offset, threads=number)
    except (AssertionError, RuntimeError) as error:
        raise AssertionError(f"{kernel.name} on {problem}, {number=}, {integer=}: {error}") from None


def _check_conv(kernel: Kernel, problem: Problem, number: int, integer: bool) -> None:
    """Two of three calls have aligned buffers, which the vector paths need."""
    check_conv(
        kernel,
        problem,
        seed=number,
        integer=integer,
        offset=(0, 0, number % 16)[number % 3],
        weight_channels_last=bool(number % 2),
        weight_gap=(0, 0, 1)[number % 3],
        threads=number,
    )
