"""Every Triton kernel runs, interpreted, in a process in which TRITON_INTERPRET is set before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

FOLDER = Path(__file__).parent / "interpreted"
NOTHING_RAN = 5  # pytest's exit status when it collected no test


def run(marker: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marker, "--durations=5", str(FOLDER)]
    # Its matrices are tiny: threads of NumPy's library would only wait for each other.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=FOLDER.parents[2])
    print(done.stdout)
    assert done.returncode != NOTHING_RAN, "No interpreted test was collected."
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_kernels_interpreted():
    run("not full")


@pytest.mark.full
def test_kernels_interpreted_in_full():
    run("full")
