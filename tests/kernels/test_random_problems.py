"""Native convolution kernels on random problems, and laws they must keep without any oracle."""

from __future__ import annotations

import random

import pytest
import torch

from fastconv import registry
from fastconv.problem import Problem
from fastconv.testing import fuzz, inputs
from fastconv.testing.check import run_guarded

KERNELS = [k for k in registry.kernels() if k.op == "conv2d" and k.native is not None]
BY_KERNEL = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
PROBLEMS_OF_AN_ALGORITHM = 40
PROBLEMS_OF_A_LAW = 12
ATTEMPTS = 4000  # a kernel may take only a small part of all problems
LEAST_PROBLEMS = 3


def accepted(kernel, count: int, **changes) -> list[Problem]:
    """Random problems without epilogue which the kernel accepts, with ``changes``."""
    rng, found = random.Random(f"{kernel.name} {changes}"), []
    plain = {"bias": False, "residual": False, "activation": "none", "alpha": 0.0, "out_offset": 0, "out_channels": 0}
    for _ in range(ATTEMPTS):
        problem = fuzz.random_problem(rng, max_flops=3e5).replace(**plain, pass_=kernel.pass_, **changes)
        if kernel.refuses(problem) is None:
            found.append(problem)
            if len(found) == count:
                return found
    if len(found) < LEAST_PROBLEMS:
        pytest.skip(f"It accepts {len(found)} of {ATTEMPTS} random problems.")
    return found


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
    met = {fuzz.algorithm(k): tally.exact[k.name] for k in registry.kernels() if k.native is not None}
    assert min(met.values()) >= PROBLEMS_OF_AN_ALGORITHM


@BY_KERNEL
def test_bits_do_not_depend_on_the_number_of_threads(kernel):
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW)):
        operands = inputs.make(problem, i, integer=False)
        one = run_guarded(kernel, problem, operands, threads=1)
        for threads in (2, 3, 5):
            assert torch.equal(one, run_guarded(kernel, problem, operands, threads=threads)), f"{problem}, {threads}"


@BY_KERNEL
def test_passes_are_adjoint(kernel):
    """<fprop(x, w), dy> = <x, dgrad(dy, w)> = <w, wgrad(x, dy)>, exactly on integers, against the reference's fprop."""
    fprop = registry.kernel("conv2d/fprop_reference_scalar")
    dgrad = registry.kernel("conv2d/dgrad_reference_scalar")
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW, dtype="f32")):
        operands = inputs.make(problem, i, integer=True)
        first, second = operands.first, operands.second
        out = run(kernel, problem, first, second)
        probe = torch.randint(-2, 3, out.shape, generator=torch.Generator().manual_seed(i)).float()
        if problem.pass_ == "fprop":
            adjoint = run(dgrad, problem.replace(pass_="dgrad"), probe, second)
        else:
            other = (probe, second) if problem.pass_ == "dgrad" else (first, probe)
            adjoint = run(fprop, problem.replace(pass_="fprop"), *other)
        against = second if problem.pass_ == "wgrad" else first
        assert (out.double() * probe).sum() == (adjoint.double() * against).sum(), str(problem)


@BY_KERNEL
def test_a_batch_is_its_images(kernel):
    if kernel.pass_ == "wgrad":
        pytest.skip("A weight gradient sums over the batch.")
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW, n=3)):
        single = problem.replace(n=1)
        if kernel.refuses(single) is not None:
            continue
        operands = inputs.make(problem, i, integer=True)
        whole = run(kernel, problem, operands.first, operands.second)
        for image in range(problem.n):
            part = run(kernel, single, operands.first[image : image + 1], operands.second)
            assert torch.equal(whole[image : image + 1], part), str(problem)


@BY_KERNEL
def test_layouts_agree(kernel):
    found = False
    for i, problem in enumerate(accepted(kernel, PROBLEMS_OF_A_LAW)):
        other = problem.replace(layout="nchw" if problem.layout == "nhwc" else "nhwc")
        if kernel.refuses(other) is not None:
            continue
        operands, found = inputs.make(problem, i, integer=True), True
        pair = (operands.first, operands.second)
        assert torch.equal(run(kernel, problem, *pair), run(kernel, other, *pair)), str(problem)
    if not found:
        pytest.skip("It knows one layout.")


@BY_KERNEL
def test_groups_are_convolutions_side_by_side(kernel):
    found = False
    for i, problem in enumerate(accepted(kernel, 8 * PROBLEMS_OF_A_LAW)):
        groups = problem.groups
        if groups == 1 or groups > 4:
            continue
        one = problem.replace(groups=1, c=problem.c // groups, k=problem.k // groups)
        if kernel.refuses(one) is not None:
            continue
        operands, found = inputs.make(problem, i, integer=True), True
        whole = run(kernel, problem, operands.first, operands.second)
        names = inputs.operand_names(problem)
        split = [
            t.chunk(groups, 0 if name == "w" else 1)
            for name, t in zip(names, (operands.first, operands.second), strict=True)
        ]
        parts = [run(kernel, one, a, b) for a, b in zip(*split, strict=True)]
        assert torch.equal(whole, torch.cat(parts, 0 if problem.pass_ == "wgrad" else 1)), str(problem)
    if not found:
        pytest.skip("It knows no groups that split.")
