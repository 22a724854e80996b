"""Threads that stay where they are: a scheduler that puts two of them on one core makes any kernel half as fast, for a
while.
"""

from __future__ import annotations

import os
import sys


def bind_threads() -> None:
    """Starts the program again with each thread bound to a CPU, unless the environment decides it already."""
    if "OMP_PROC_BIND" not in os.environ:
        os.execve(sys.executable, sys.orig_argv, os.environ | {"OMP_PROC_BIND": "true"})
