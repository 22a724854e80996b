"""``fastconv models``: the networks that come with the package."""

from __future__ import annotations

from rich.table import Table

from fastconv.cli.screen import console


def models() -> None:
    """List the networks that come with fastconv."""
    from fastconv.models import list_models, model_info

    table = Table("model", "image", "parameters", "multiply-adds")
    for name in list_models():
        info = model_info(name)
        table.add_row(
            name,
            f"{info.image_size} x {info.image_size}",
            f"{info.parameters / 1e6:.2f} M",
            f"{info.multiply_adds / 1e9:.2f} G",
        )
    console().print(table)
