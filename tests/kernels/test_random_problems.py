"""Native convolution kernels on random problems, and laws they must keep without any oracle."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.testing import fuzz, inputs, tolerances
from fastconv.testing.check import run_guarded

PLAIN = {"bias": False, "residual": False, "activation": "none", "alpha": 0.0, "out_offset": 0, "out_channels": 0}
SAMPLE = [fuzz.random_problem(random.Random(i), max_flops=3e5).replace(**PLAIN) for i in range(400)]
PROBLEMS_OF_AN_ALGORITHM = 40
PROBLEMS_OF_A_LAW = 12
ATTEMPTS = 4000  # a kernel may take only a small part of all problems
LEAST_PROBLEMS = 3
MOST_GROUPS = 4  # the test of groups splits no more


def takes(kernel, problem: Problem, **changes) -> bool:
    """Whether the kernel accepts the problem, as one of its own pass and with ``changes``."""
    return kernel.refuses(problem.replace(pass_=kernel.pass_, **changes)) is None


def split(problem: Problem) -> dict[str, int]:
    """The changes that make one group's convolution of a problem."""
    return {"groups": 1, "c": problem.c // problem.groups, "k": problem.k // problem.groups}


def by_kernel(fact):
    """Runs a test for every kernel of this machine for which ``fact(kernel, problem)`` holds for some problem."""
    native = (k for k in registry.kernels() if k.op == "conv2d" and k.native is not None)
    kernels = [k for k in native if any(fact(k, problem) for problem in SAMPLE)]
    return pytest.mark.parametrize("kernel", kernels, ids=lambda k: k.name)


def accepted(kernel, count: int, **changes) -> list[Problem]:
    """Random problems without epilogue which the kernel accepts, with ``changes``."""
    rng, found = random.Random(f"{kernel.name} {changes}"), []
    for _ in range(ATTEMPTS):
        problem = fuzz.random_problem(rng, max_flops=3e5).replace(**PLAIN, pass_=kernel.pass_, **changes)
        if kernel.refuses(problem) is None:
            found.append(problem)
            if len(found) == count:
                return found
    assert len(found) >= LEAST_PROBLEMS, f"It accepts {len(found)} of {ATTEMPTS} random problems."
    return found


def integers(kernel, problem, seed: int):
    """Integer operands on which the kernel is exact, where it ever is."""
    return inputs.make(problem, seed, True, tolerances.WEIGHT_MULTIPLE.get(kernel.algorithm, 1))


def run(kernel, problem, first, second, threads: int = 2):
    """The kernel's result on two operands, laid out for the problem."""
    format = inputs.memory_format(problem)
    names = inputs.operand_names(problem)
    tensors = [
        t.contiguous() if name == "w" else t.contiguous(memory_format=format)
        for name, t in zip(names, (first, second), strict=True)
    ]
    return run_guarded(kernel, problem, inputs.Operands(*tensors, None, None), threads=threads)


def test_every_native_kernel_agrees_with_the_oracle():
    """More of the same: python -m fastconv.testing.fuzz --count 20000."""
    tally = fuzz.fuzz(PROBLEMS_OF_AN_ALGORITHM)
    met = {fuzz.without_target(k): tally.met(k) for k in registry.kernels() if k.native is not None}
    assert min(met.values()) >= PROBLEMS_OF_AN_ALGORITHM


@by_kernel(takes)
def test_bits_do_not_depend_on_the_number_of_threads(kernel):
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW)):
        operands = inputs.make(problem, i, integer=False)
        one = run_guarded(kernel, problem, operands, threads=1)
        for threads in (2, 3, 5):
            assert torch.equal(one, run_guarded(kernel, problem, operands, threads=threads)), f"{problem}, {threads}"


@by_kernel(lambda kernel, problem: takes(kernel, problem, dtype="f32"))
def test_passes_are_adjoint(kernel):
    """<fprop(x, w), dy> = <x, dgrad(dy, w)> = <w, wgrad(x, dy)>, exactly on integers, against the reference's fprop."""
    fprop = registry.kernel("conv2d/fprop_reference_scalar")
    dgrad = registry.kernel("conv2d/dgrad_reference_scalar")
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW, dtype="f32")):
        operands = integers(kernel, problem, i)
        first, second = operands.first, operands.second
        out = run(kernel, problem, first, second)
        probe = torch.randint(-2, 3, out.shape, generator=torch.Generator().manual_seed(i)).float()
        if problem.pass_ == "fprop":
            adjoint = run(dgrad, problem.replace(pass_="dgrad"), probe, second)
        else:
            other = (probe, second) if problem.pass_ == "dgrad" else (first, probe)
            adjoint = run(fprop, problem.replace(pass_="fprop"), *other)
        against = second if problem.pass_ == "wgrad" else first
        left, right = (out.double() * probe).sum(), (adjoint.double() * against).sum()
        if kernel.algorithm in tolerances.INEXACT:
            size = tolerances.winograd_size(problem, first, second, kernel.algorithm)
            error = tolerances.allowed_l2("f32", inputs.terms(problem), kernel.algorithm, size, out.double())
            assert (left - right).abs() <= error * probe.norm(), str(problem)
        else:
            assert left == right, str(problem)


@by_kernel(lambda kernel, problem: kernel.pass_ != "wgrad" and takes(kernel, problem))
def test_a_batch_is_its_images(kernel):
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW, n=3)):
        single = problem.replace(n=1)
        if kernel.refuses(single) is not None:
            continue
        operands = integers(kernel, problem, i)
        whole = run(kernel, problem, operands.first, operands.second)
        for image in range(problem.n):
            part = run(kernel, single, operands.first[image : image + 1], operands.second)
            assert torch.equal(whole[image : image + 1], part), str(problem)


@by_kernel(
    lambda kernel, problem: (
        problem.h.size * problem.w.size > 1  # of one pixel both are the same
        and takes(kernel, problem, layout="nchw")
        and takes(kernel, problem, layout="nhwc")
    )
)
def test_layouts_agree(kernel):
    found = False
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW)):
        other = problem.replace(layout="nchw" if problem.layout == "nhwc" else "nhwc")
        if kernel.refuses(other) is not None:
            continue
        operands, found = integers(kernel, problem, i), True
        pair = (operands.first, operands.second)
        assert torch.equal(run(kernel, problem, *pair), run(kernel, other, *pair)), str(problem)
    assert found


@by_kernel(
    lambda kernel, problem: (
        1 < problem.groups <= MOST_GROUPS and takes(kernel, problem) and takes(kernel, problem, **split(problem))
    )
)
def test_groups_are_convolutions_side_by_side(kernel):
    found = False
    for i, problem in enumerate(accepted(kernel, 8 * PROBLEMS_OF_A_LAW)):
        groups = problem.groups
        if groups == 1 or groups > MOST_GROUPS:
            continue
        one = problem.replace(**split(problem))
        if kernel.refuses(one) is not None:
            continue
        operands, found = integers(kernel, problem, i), True
        whole = run(kernel, problem, operands.first, operands.second)
        names = inputs.operand_names(problem)
        chunks = [
            t.chunk(groups, 0 if name == "w" else 1)
            for name, t in zip(names, (operands.first, operands.second), strict=True)
        ]
        parts = [run(kernel, one, a, b) for a, b in zip(*chunks, strict=True)]
        assert torch.equal(whole, torch.cat(parts, 0 if problem.pass_ == "wgrad" else 1)), str(problem)
    assert found
