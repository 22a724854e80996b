"""Curves of a run as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fastconv.training.trainer import Epoch

_WIDTH, _HEIGHT = 11, 4  # inches
_DPI = 120


def pyplot() -> ModuleType:
    """matplotlib's pyplot without a window; an ImportError that names the extra where there is none."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Plots need the package matplotlib: pip install 'fastconv[train]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_curves(history: Sequence[Epoch], path: str | os.PathLike, title: str) -> None:
    """Loss, error and learning rate of every epoch, side by side, to a file of the kind its name ends in."""
    plt = pyplot()
    epochs = [row.epoch for row in history]
    figure, (loss, error, rate) = plt.subplots(1, 3, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    loss.plot(epochs, [row.loss for row in history], label="training")
    loss.plot(epochs, [row.held_loss for row in history], label="held out")
    error.plot(epochs, [100 * (1 - row.accuracy) for row in history], label="training")
    error.plot(epochs, [100 * (1 - row.held_accuracy) for row in history], label="held out")
    rate.plot(epochs, [row.rate for row in history], drawstyle="steps-post")
    for axes, name in ((loss, "loss"), (error, "error, %"), (rate, "learning rate")):
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    loss.legend()
    error.legend()
    figure.suptitle(title)
    save_figure(figure, path)


def save_figure(figure, path: str | os.PathLike) -> None:
    """Write the figure whole or not at all, and let it go."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        figure.savefig(temporary, dpi=_DPI)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        pyplot().close(figure)
