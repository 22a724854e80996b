"""What every benchmark file shares: the machine's facts in the saved results."""

from __future__ import annotations

from fastconv.profiling.machine import this_machine


def pytest_benchmark_update_machine_info(config, machine_info):
    """pytest-benchmark keeps its own facts; ours name the kernels' instruction set, threads and the commit."""
    machine_info["fastconv"] = this_machine().as_dict()
