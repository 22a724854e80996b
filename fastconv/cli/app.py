"""The verbs, gathered."""

from __future__ import annotations

from typing import Annotated

import typer

from fastconv.cli import bench, compare, doctor, explain, models, predict, study, train, tune

app = typer.Typer(
    name="fastconv",
    help="Hand-tuned convolution for PyTorch: explained, measured, never silently slower.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.command("explain")(explain.explain)
app.command("models")(models.models)
app.command("train")(train.train)
app.command("tune")(tune.tune)
app.command("predict")(predict.predict)
app.add_typer(study.study, name="study")
app.command("doctor")(doctor.doctor)


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        import fastconv

        typer.echo(fastconv.__version__)
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
