"""fastconv: hand-tuned convolution for PyTorch. Explained, measured, undoable."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module. Loaded on first use, so that ``import fastconv`` is quick and works without the extension.
_LAZY = {
    "Problem": "fastconv.problem",
    "config": "fastconv.settings",
    "explain": "fastconv.explanation",
    "freeze": "fastconv.graph",
    "functional": "fastconv.functional",
    "load_plan": "fastconv.graph",
    "memory_stats": "fastconv.memory",
    "nn": "fastconv.nn",
    "optimize": "fastconv.graph",
    "release_memory": "fastconv.memory",
    "restore": "fastconv.nn",
    "swap": "fastconv.nn",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fastconv' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    value = module if module.__name__ == f"fastconv.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
