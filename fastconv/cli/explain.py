"""``fastconv explain``: which kernel runs a problem, and why not the others."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from fastconv.cli.arguments import problem as parse


def explain(
    problem: Annotated[str, Argument(help="For example n8c64h56w56_k64r3s3_p1_f32nhwc.")],
    device: Annotated[str, Option(help="Device type that the problem is planned for: cpu or cuda.")] = "cpu",
) -> None:
    """Print every kernel with its reason, the chosen one, its workspace and its layout copies."""
    import fastconv

    parsed = parse(problem)
    typer.echo(str(fastconv.explain(parsed, device=device)))
