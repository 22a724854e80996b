"""``fastconv compare``: a model as it is against the same model swapped."""

from __future__ import annotations

import typer


def compare() -> None:
    """Placeholder."""
    raise typer.Exit()
