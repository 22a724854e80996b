"""Every kernel of the list on a small corpus, next to PyTorch in both layouts: ``pytest benchmarks/bench_kernels.py``.

``-k igemm`` or ``-k n1c64h56w56`` picks; ``--benchmark-json FILE`` keeps the figures. Rows of one problem stand
together. pytest-benchmark runs one row after the other; where a ratio matters, ``fastconv bench PROBLEM`` takes turns.
"""

from __future__ import annotations

import pytest

from fastconv.testing import bench, corpus, oracle

SECONDS = 0.2


def cases():
    for base in corpus.load("quick"):
        for problem in (base, corpus.backward(base, "dgrad"), corpus.backward(base, "wgrad")):
            for entrant in bench.entrants(problem)[0] if problem else ():
                yield pytest.param(problem, entrant, id=f"{problem}-{entrant.kernel.name}-{entrant.problem.layout}")


@pytest.fixture(scope="module")
def answers():
    """One oracle a problem: the float64 result costs more than most kernels' timing."""
    known = {}

    def answer(problem):
        if problem not in known:
            known.clear()
            known[problem] = oracle.ask(problem)
        return known[problem]

    return answer


@pytest.mark.benchmark(max_time=SECONDS, warmup=True)
@pytest.mark.parametrize(("problem", "entrant"), list(cases()))
def bench_kernel(benchmark, answers, problem, entrant):
    exact = answers(problem)
    [tensors] = bench.operand_sets(exact.tensors, entrant.problem, cold=False)
    call = entrant.call(tensors)
    wrong = exact.verdict_of_call(call(), tensors, entrant.kernel.name)
    assert wrong is None, wrong  # no timing of a wrong result
    benchmark.group = str(problem)
    benchmark.extra_info |= {"flops": problem.flops, "bytes": problem.bytes}
    benchmark(call)
