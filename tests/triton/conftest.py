"""Triton decides when it is imported whether kernels are interpreted, so what needs the interpreter runs in a process
of its own (``test_interpreted.py``) and is not collected in any other.
"""

import os

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = ["test_interpreted.py", "test_ahead_of_time.py", "test_rows.py"] if INTERPRETS else ["interpreted"]

if INTERPRETS:
    from fastconv.testing import interpreter

    interpreter.prepare()
