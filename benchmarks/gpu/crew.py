"""Worker processes that carry units out, so that a kernel which breaks its CUDA context, hangs or crashes takes one
unit with it and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from benchmarks.gpu.plan import Unit

MARK = "RESULT "
PATIENCE = 4  # times a unit's own estimate, and
START = 90  # seconds for a worker's start and a first compilation
WORKER = (sys.executable, "-m", "benchmarks.gpu.worker")


class Worker:
    """One process that reads names of units and answers each with a line of JSON."""

    def __init__(self, command: Sequence[str] = WORKER):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, unit: Unit, seconds: float) -> dict | None:
        """The unit's result, or None when the process ended or had to be ended after ``seconds``."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(unit.name + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(MARK):
                    return json.loads(line.removeprefix(MARK))
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        return None

    def end(self) -> int:
        """Lets the process go; its exit status."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            status = self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process.stdout.close()
        return status


def phases(units: Iterable[Unit]) -> list[list[Unit]]:
    """Neighbours that may run side by side, and neighbours that must run alone, in order."""
    groups: list[list[Unit]] = []
    for unit in units:
        if not groups or groups[-1][-1].alone != unit.alone:
            groups.append([])
        groups[-1].append(unit)
    return groups


def carry_out(
    units: Iterable[Unit],
    deadline: float,
    jobs: int,
    done: Callable[[Unit, dict], None],
    command: Sequence[str] = WORKER,
) -> None:
    """Runs units in order until the clock (time.monotonic) leaves too little for the next; calls ``done`` with each
    result, one at a time.

    A unit at whose end the worker was gone is "error" where it crashed, and "interrupted" where it took too long.
    """
    lock = threading.Lock()
    for phase in phases(units):
        queue = iter(phase)
        threads = [
            threading.Thread(target=_work, args=(queue, deadline, lock, done, command))
            for _ in range(1 if phase[0].alone else min(jobs, len(phase)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _work(queue, deadline: float, lock: threading.Lock, done, command: Sequence[str]) -> None:
    worker = None
    while True:
        with lock:
            unit = next(queue, None)
        left = deadline - time.monotonic()
        if unit is None:
            break
        if left < unit.seconds:
            continue  # a shorter one may still fit
        if worker is None:
            worker = Worker(command)
        start = time.monotonic()
        found = worker.run(unit, min(left, PATIENCE * unit.seconds + START))
        spent = time.monotonic() - start
        if found is None:
            status = worker.end()
            worker = None
            ended = spent >= min(left, PATIENCE * unit.seconds + START) - 1
            reason = f"It took longer than {spent:.0f} s." if ended else f"Its process ended with status {status}."
            found = {"outcome": "interrupted" if ended else "error", "reason": reason}
        elif found.pop("broken", False):
            worker.end()
            worker = None
        with lock:
            done(unit, found | {"seconds": round(spent, 2)})
    if worker is not None:
        worker.end()
