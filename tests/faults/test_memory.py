"""Memory stays flat over ever new shapes and over calls that fail. The full counts: pytest -m full tests/faults."""

from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import pytest
import torch

from fastconv import functional
from fastconv._native import C

MOST_PLANS = 8192  # csrc/bindings/dispatch.cpp keeps no more
FLAT = 16e6  # bytes: the allocator's own unrest


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of tiny calls: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def call_with_new_shapes(shapes) -> None:
    """One convolution and one pool of each shape."""
    weight = torch.ones(1, 1, 1, 1)
    for n, h, w in shapes:
        x = torch.ones(n, 1, h, w)
        functional.max_pool2d(functional.conv2d(x, weight), 1)


def all_shapes():
    return itertools.product(range(1, 9), range(1, 200), range(1, 200))


def check_shapes(count: int) -> None:
    """Memory after a full cache of plans and after ``count`` shapes more."""
    shapes, round_ = all_shapes(), MOST_PLANS // 2  # two plans a shape
    with torch.inference_mode():
        call_with_new_shapes(itertools.islice(shapes, round_))
        before = resident_bytes()
        for _ in range(count // round_):
            call_with_new_shapes(itertools.islice(shapes, round_))
            assert C.plan_count() <= MOST_PLANS
    assert resident_bytes() - before < FLAT


def test_ever_new_shapes_leave_memory_flat():
    check_shapes(MOST_PLANS // 2)


@pytest.mark.full
def test_a_hundred_thousand_shapes_leave_memory_flat():
    check_shapes(100_000)


X, W = torch.ones(2, 4, 5, 6), torch.ones(6, 4, 3, 3)
FAILING = [
    lambda: functional.conv2d(X, W, stride=0),
    lambda: functional.conv2d(X, W[:, :3]),
    lambda: functional.conv2d(X, W, torch.ones(5)),
    lambda: functional.conv2d(X, W, padding=2**40),
    lambda: functional.conv2d(X, W.double()),
    lambda: functional.conv2d(X, W, groups=3),
    lambda: functional.conv2d(X, W, padding="foo"),
    lambda: functional.conv_transpose2d(X, W, output_padding=3),
    lambda: functional.max_pool2d(X, 2, 1, 2),
    lambda: functional.avg_pool2d(X, 9),
    lambda: functional.max_unpool2d(X, torch.full(X.shape, 10**6), 2),
    lambda: functional.adaptive_avg_pool2d(X, -1),
    lambda: functional.conv2d(X, W).requires_grad_().sum().backward(torch.ones(3)),
    lambda: C.Problem("n1c8"),
]


def fail(count: int) -> None:
    for call, _ in zip(itertools.cycle(FAILING), range(count), strict=False):
        with pytest.raises((RuntimeError, ValueError)):
            call()


def test_ten_thousand_failed_calls_leave_memory_flat():
    fail(20 * len(FAILING))
    before, plans, objects = resident_bytes(), C.plan_count(), len(gc.get_objects())
    fail(10_000)
    assert resident_bytes() - before < FLAT
    assert C.plan_count() == plans
    assert len(gc.get_objects()) - objects < 100


def test_results_do_not_keep_their_operands_alive():
    """Calls with gradients: nothing is kept once the result is gone."""
    weight = torch.ones(8, 4, 3, 3, requires_grad=True)

    def run(count: int) -> None:
        for _ in range(count):
            functional.max_pool2d(functional.conv2d(X, weight[:, :, :2, :2]), 2).sum().backward()
            weight.grad = None

    run(100)
    before = resident_bytes()
    run(1000)
    assert resident_bytes() - before < FLAT
