"""What each kind of unit does, in a worker, on the GPU."""

from __future__ import annotations

import random
from itertools import islice

import torch

from benchmarks.gpu import behave, clock, functions, race, sanitize
from fastconv import registry
from fastconv.kernels import pairs
from fastconv.problem import Problem
from fastconv.testing import check, emulator, gpu_cases, hardware, inputs
from fastconv.testing.check_pair import check_pair, random_pairs
from fastconv.testing.inputs import DTYPES

SMOKE = 3  # problems of each dtype
RANDOM = 50  # convolutions of each dtype
COMPILED = 24  # problems of a Triton kernel, which is compiled for most of them
EMULATED = 4  # problems of each dtype
COPIED = 4 << 30  # bytes of the source
SIDE = 8192  # of the matrices whose product is timed


def on_gpu(name: str):
    return hardware.through(registry.kernel(name))


def nothing(kernel) -> dict:
    """The result where no problem was accepted."""
    reasons = {kernel.refuses(problem) for problem in islice(gpu_cases.convolutions(kernel, "bf16"), 1)}
    said = next(iter(reasons), None) if kernel.op == "conv2d" else None
    return {"outcome": "skipped", "reason": said or "It accepts no problem of its corpus here."}


def smoke(name: str) -> dict:
    """A few small problems of each dtype, on integers."""
    kernel, count = on_gpu(name), 0
    for dtype in gpu_cases.dtypes(kernel):
        for i, problem in enumerate(islice(gpu_cases.problems(kernel, dtype), SMOKE)):
            gpu_cases.check(kernel, problem, i)
            count += 1
    return {"outcome": "ok", "problems": count} if count else nothing(kernel)


def prove(what: str) -> dict:
    """Every problem of the corpus in one dtype, on integers and on real values, and random convolutions."""
    name, dtype = what.rsplit("/", 1)
    kernel, count = on_gpu(name), 0
    most = COMPILED if kernel.target == "triton" else None
    for i, problem in enumerate(islice(gpu_cases.problems(kernel, dtype), most)):
        gpu_cases.check(kernel, problem, i, integer=True)
        gpu_cases.check(kernel, problem, i + 1, integer=False)
        count += 1
    if count and kernel.op == "conv2d" and most is None:
        for i, problem in enumerate(gpu_cases.random_convolutions(kernel, RANDOM, (dtype,))):
            gpu_cases.check(kernel, problem, i, integer=True)
            count += 1
    return {"outcome": "ok", "problems": count} if count else nothing(kernel)


def pair(name: str) -> dict:
    """Random pairs of problems, integers and real values."""
    kernel = hardware.pair_through(next(pair for pair in pairs.pairs() if pair.name == name))
    most, count = COMPILED if name.endswith("_triton") else RANDOM, 0
    for first, second in islice(random_pairs(random.Random(name)), 20 * most):
        if count < most and kernel.refuses(first, second) is None:
            check_pair(kernel.run, first, second, count, integer=count % 4 != 3)
            count += 1
    return (
        {"outcome": "ok", "problems": count} if count else {"outcome": "skipped", "reason": "It accepts no pair here."}
    )


def emulate(name: str) -> dict:
    """The same operands in the emulator and on the device: equal bits on integers; on real values, how many are."""
    emulated, real = emulator.kernel(name), on_gpu(name)
    if real.op != "conv2d":  # each must equal the oracle, which the checks of both already say
        return {"outcome": "skipped", "reason": "Pools are held to the bits of the oracle on both sides."}
    same = total = 0
    worst = 0.0
    for dtype in gpu_cases.dtypes(real):
        for i, problem in enumerate(islice(gpu_cases.problems(real, dtype), EMULATED)):
            for integer in (True, False):
                given = inputs.make(problem, i, integer)
                one = check.run_guarded(emulated, problem, given).double()
                other = check.run_guarded(real, problem, given).double()
                if integer and check.is_exact(problem):
                    assert torch.equal(one, other), f"{problem}: emulator and device differ on integers."
                elif not integer:
                    same += int((one == other).sum())
                    total += one.numel()
                    worst = max(worst, ((one - other).norm() / one.norm().clamp(min=1e-30)).item())
    return (
        {"outcome": "ok", "equal_share": round(same / max(1, total), 4), "distance": worst} if total else nothing(real)
    )


def limits(what: str) -> dict:
    """Bytes a second of a large copy, read and written, or FLOP/s of a large product of random matrices."""
    if what == "copy":
        source = torch.empty(COPIED, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        rate = 2 * COPIED / clock.seconds([lambda: target.copy_(source)]).median
        return {"outcome": "ok", "rate": rate}
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=DTYPES[what]) for _ in range(2))
    with race.pytorch(tf32=what == "tf32"):
        return {"outcome": "ok", "rate": 2 * SIDE**3 / clock.seconds([lambda: a @ b]).median}


KINDS = {
    "smoke": smoke,
    "prove": prove,
    "emulate": emulate,
    "limits": limits,
    "behave": behave.check,
    "sanitize": sanitize.check_tool,
    "time": lambda text: race.race(Problem(text)),
    "pair": pair,
    "function": functions.check,
    "compile": lambda text: race.compiled(Problem(text)),
}
