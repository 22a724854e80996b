"""Loads the compiled extension, or remembers in one sentence why it could not be loaded.

``import fastconv`` always works; the first use of anything that needs the extension raises the sentence.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


class _Missing:
    """Stands in for the extension; every attribute raises the reason it is missing."""

    def __init__(self, reason: str):
        self.reason = reason

    def __getattr__(self, name: str):
        raise ImportError(self.reason)


def _load() -> tuple[ModuleType | _Missing, str | None]:
    try:
        built_for = importlib.import_module("fastconv._build").TORCH_VERSION
    except ModuleNotFoundError:
        return _fail(
            "The fastconv extension is not built; run 'pip install --no-build-isolation .' in its source tree."
        )
    if built_for != torch.__version__:
        return _fail(
            f"The fastconv extension was built for torch {built_for}, but torch {torch.__version__} is installed; "
            "rebuild it with 'pip install --no-build-isolation --force-reinstall --no-deps .' in its source tree."
        )
    try:
        return importlib.import_module("fastconv._C"), None
    except ImportError as error:
        return _fail(f"The fastconv extension, built for torch {built_for}, cannot be loaded: {error}")


def _fail(reason: str) -> tuple[_Missing, str]:
    return _Missing(reason), reason


C, load_error = _load()
