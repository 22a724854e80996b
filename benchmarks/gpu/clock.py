"""Seconds a call takes on the GPU: many calls in one CUDA graph, so that starting them costs nothing, its replays timed
by events; on as many sets of operands in turn as L2 cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from fastconv.profiling.timer import Timing, percentile

Call = Callable[[], object]
SAMPLES = 25
SAMPLE = 2e-3  # seconds of a graph, about
MOST_CALLS = 400  # of a graph
WARM_UP = 3
BEYOND_L2 = 2


def sets_needed(bytes_of_one: float, l2: int) -> int:
    """How many sets of operands together are beyond L2."""
    return max(1, min(64, -(-BEYOND_L2 * l2 // max(1, int(bytes_of_one)))))


def calls_of_graph(seconds: float, sets: int) -> int:
    """How many calls make a graph of about SAMPLE seconds, a multiple of the number of sets."""
    wanted = max(1, min(MOST_CALLS, round(SAMPLE / max(seconds, 1e-7))))
    return -(-wanted // sets) * sets


def seconds(calls: Sequence[Call]) -> Timing:
    """The median call, going round ``calls``. Whoever cannot be captured in a graph raises."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(max(WARM_UP, len(calls))):
            calls[i % len(calls)]()
        rough = _elapsed(lambda: [call() for call in calls]) / len(calls)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    count = calls_of_graph(rough, len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    for _ in range(WARM_UP):
        graph.replay()
    samples = [_elapsed(graph.replay) / count for _ in range(SAMPLES)]
    median, low, high = (percentile(samples, fraction) for fraction in (0.5, 0.1, 0.9))
    return Timing(median, low, high, count * SAMPLES)


def as_dict(timing: Timing) -> dict[str, float]:
    """For JSON, in microseconds."""
    found = asdict(timing)
    return {"us": found["median"] * 1e6, "p10": found["p10"] * 1e6, "p90": found["p90"] * 1e6}


def _elapsed(call: Call) -> float:
    """Seconds of a call on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
