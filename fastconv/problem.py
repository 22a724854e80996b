"""Problem: everything that decides which kernel may run, as one value and one string.

``Problem("n8c64h56w56_k64r3s3_p1_f32nhwc")`` parses, ``str(problem)`` prints, and the two are inverse. The grammar
stands in ``csrc/core/problem.h``; the value itself is shared with the kernels.
"""

from __future__ import annotations

from fastconv._native import C

Problem = C.Problem

__all__ = ["Problem"]
