"""A worker: reads names of units, a line each, and prints what came of them. ``crew.py`` starts it."""

from __future__ import annotations

import json
import sys
import traceback

from benchmarks.gpu import crew

LONGEST = 2000  # characters of a reason
# A CUDA error of these kinds stays in the process: everything after it would fail as well.
STICKY = ("CUDA error", "CUDA:", "CUDNN", "CUBLAS")


def found(name: str) -> dict:
    """Carries one unit out; an error is a result too."""
    from benchmarks.gpu import work

    kind, what = name.split("/", 1)
    try:
        return work.KINDS[kind](what)
    except AssertionError as error:
        return {"outcome": "wrong", "reason": str(error)[:LONGEST], "broken": is_sticky(str(error))}
    except Exception as error:
        reason = "".join(traceback.format_exception_only(error)).strip()
        return {"outcome": "error", "reason": reason[:LONGEST], "broken": is_sticky(reason)}


def is_sticky(reason: str) -> bool:
    """Whether a process that met this error should do nothing more."""
    return any(word in reason for word in STICKY)


def main() -> None:
    for line in sys.stdin:
        print(crew.MARK + json.dumps(found(line.strip())), flush=True)


if __name__ == "__main__":
    main()
