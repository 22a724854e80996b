"""Many threads at once: the first calls of a process, changes of the configuration, full plan caches, traces."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv import dispatch, functional, settings
from fastconv._native import C
from fastconv.problem import Problem
from fastconv.profiling import trace

ROOT = Path(__file__).parents[2]
THREADS = 16


def together(work: Callable[[int], object], count: int = THREADS, timeout: float = 60) -> list:
    """The results of ``work(i)`` in threads that start as one; raises what one of them raised, or that it hangs."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(i: int) -> None:
        barrier.wait()
        try:
            results[i] = work(i)
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "A thread hangs."
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def one_problem(i: int, functions) -> torch.Tensor:
    x = torch.arange(2 * 3 * 15 * 17.0).view(2, 3, 15, 17).remainder(5)
    return functions.conv2d(x, torch.ones(4, 3, 3, 2))


def own_problem(i: int, functions) -> torch.Tensor:
    x = torch.arange(3 * (9 + i) * 17.0).view(1, 3, 9 + i, 17).remainder(5)
    y = functions.conv2d(x, torch.ones(4 + i, 3, 3, 2))
    return functions.avg_pool2d(functions.max_pool2d(y, 3, 2, 1), 2)


COLD = """
import torch
from fastconv import functional
from tests.faults import test_threads as t
work = {"same": t.one_problem, "own": t.own_problem}
for name in ("same", "own"):
    for i, y in enumerate(t.together(lambda i: work[name](i, functional))):
        assert torch.equal(y, work[name](i, torch.nn.functional)), (name, i)
"""


def test_sixteen_threads_before_anything_is_planned():
    """On one problem and on sixteen, in a process that has run nothing."""
    result = subprocess.run([sys.executable, "-c", COLD], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_threads_of_all_sizes_agree():
    """Every thread has a workspace of its own, and results do not depend on who runs beside."""

    def work(i: int) -> list[torch.Tensor]:
        return [own_problem((i + step) % THREADS, functional) for step in range(THREADS)]

    alone = [own_problem(i, functional) for i in range(THREADS)]
    for i, results in enumerate(together(work)):
        for step, y in enumerate(results):
            assert torch.equal(y, alone[(i + step) % THREADS])


def test_calls_while_the_configuration_changes():
    expected, stop = one_problem(0, functional), threading.Event()

    def work(i: int) -> None:
        if i == 0:
            before = settings.current()
            for _ in range(200):
                with fastconv.config(isa="scalar"), fastconv.config(kernel="-*_aten"):
                    pass
            stop.set()
            assert settings.current() == before
        while not stop.is_set():
            torch.testing.assert_close(one_problem(i, functional), expected)

    together(work, 4)


@pytest.fixture
def cold_plans():
    C.clear_plans()
    yield
    C.clear_plans()


def test_a_full_plan_cache_starts_again_and_nobody_hangs(cold_plans):
    """PyTorch's rows are Python objects: their plans end under the interpreter's lock, which another thread may hold
    while it waits for the cache.
    """
    shapes, stop, most = 8500, threading.Event(), 0
    x, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)

    def work(i: int) -> None:
        nonlocal most
        if i == 0:
            try:
                with torch.inference_mode():
                    for n in range(shapes):
                        functional.conv2d(x.expand(n + 1, 1, 2, 2)[:, :, :1, :1], weight)
            finally:
                stop.set()
        while not stop.wait(0.0005):
            most = max(most, C.plan_count())

    with fastconv.config(kernel="*_aten"):
        together(work, 3, timeout=120)
    assert 8000 < most < shapes and C.plan_count() < 1000


def test_what_a_sink_raises_is_raised_by_the_call():
    """Ctrl-C while calls are traced must not end the process from inside the extension."""

    def sink(call: trace.Call) -> None:
        raise KeyboardInterrupt

    with trace.report(sink):
        for call in (lambda: one_problem(0, functional), lambda: functional.max_pool2d(torch.ones(1, 1, 4, 4), 2)):
            with pytest.raises(KeyboardInterrupt):
                call()
        weight = torch.ones(4, 3, 3, 2, requires_grad=True)
    y = functional.conv2d(torch.ones(1, 3, 5, 5), weight)
    with trace.report(sink), pytest.raises(KeyboardInterrupt):
        y.sum().backward()
    y.sum()
    assert one_problem(0, functional).shape == (2, 4, 13, 16)


def test_traces_inside_traces():
    """The inner one ends without ending the outer one, in whichever order they end."""
    with trace.trace() as outer:
        one_problem(0, functional)
        with trace.trace() as inner:
            one_problem(0, functional)
        one_problem(0, functional)
    one_problem(0, functional)
    assert (len(outer), len(inner)) == (3, 1)
    first, second = trace.trace(), trace.trace()
    calls = [first.__enter__(), second.__enter__()]
    first.__exit__(None, None, None)
    one_problem(0, functional)
    second.__exit__(None, None, None)
    one_problem(0, functional)
    assert [len(c) for c in calls] == [0, 1]


def test_deterministic_mode_compares_kernels_as_for_one_thread():
    """Estimates of cost depend on the number of threads; where they decide, the bits would too."""
    problem = Problem("n1c64h28w30_k64r3s3_p1_f32nhwc")

    def estimates(threads: int) -> list[float | None]:
        torch.set_num_threads(threads)
        return [candidate.seconds for candidate in dispatch.candidates(problem)]

    before = torch.get_num_threads()
    try:
        assert any(estimates(1)) and estimates(1) != estimates(16)
        with fastconv.config(deterministic=True):
            assert estimates(1) == estimates(2) == estimates(16)
    finally:
        torch.set_num_threads(before)


def test_deterministic_mode_has_the_same_bits_in_a_hundred_runs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 30, 31, generator=generator).requires_grad_()
    weight = torch.randn(32, 32, 3, 3, generator=generator).requires_grad_()
    thin = torch.randn(32, 1, 3, 3, generator=generator).requires_grad_()

    def run() -> bytes:
        y = functional.conv2d(functional.conv2d(x, weight, padding=1), thin, groups=32)
        y = functional.avg_pool2d(functional.max_pool2d(y, 3, 2, 1), 3, 2)
        tensors = (y, *torch.autograd.grad(y.square().sum(), (x, weight, thin)))
        return b"".join(t.detach().numpy().tobytes() for t in tensors)

    threads = torch.get_num_threads()
    try:
        with fastconv.config(deterministic=True):
            results = set()
            for i in range(100):
                torch.set_num_threads(1 + i % 4)
                results.add(run())
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1
