"""What every module of plans refuses: it is inference alone, of one dtype, on one device."""

from __future__ import annotations

from typing import Any

from torch import nn


class Inference(nn.Module):
    """A module without parameters of its own, made from a source model."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> Inference:
        if mode:
            raise RuntimeError("A plan is inference alone: train the source model, then call refresh() on the plan.")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Inference:
        raise RuntimeError("A plan has one dtype and device: move or convert the source model and optimize it again.")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("A plan has no parameters: load into the source model, then call refresh() on the plan.")
