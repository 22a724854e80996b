"""Drop-in layers for torch.nn's convolutions, pools and norms; swap/restore change a model's layers in place."""

from fastconv.nn.layers import *  # noqa: F403  (the layers name themselves, once)
from fastconv.nn.swap import Report, Row, restore, swap

__all__ = [*layers.__all__, "Report", "Row", "restore", "swap"]  # noqa: F405
