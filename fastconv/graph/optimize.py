"""``fastconv.optimize``: a model's inference as plans."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastconv.graph.capture import CaptureError
from fastconv.graph.optimized import Optimized
from fastconv.graph.piecewise import Piecewise
from fastconv.graph.select import Policy


def optimize(
    model: nn.Module,
    example_inputs: Any,
    *,
    tune: bool = False,
    winograd: bool = True,
    dtype: torch.dtype | None = None,
) -> Optimized | Piecewise:
    """A module of the model's signature that runs its inference as plans: batch norms folded, epilogues fused, filters
    packed once, concatenations written in place, one native call between what stays PyTorch.

    model: in eval mode; it is read and not changed. example_inputs: a tensor, or a tuple of the arguments; sizes are
        fixed by them except the batch, which may vary where the model allows it.
    tune: whether the kernels of convolutions are chosen by running every one that accepts, when a shape first comes (a
        second or so for each layer), instead of by estimate. Do it on an idle machine.
    winograd: whether Winograd kernels may be chosen (see ``fastconv.config``).
    dtype: what the plan computes in, for example ``torch.bfloat16``; inputs and results keep the model's. None: as the
        model does.

    Where torch.export cannot follow the whole model (control flow that depends on values, objects of its own between
    its modules), or the sizes of its layers depend on values, those submodules that can be followed become plans and
    the model's own Python calls them; str() of the result says which and why. There a submodule that meets other sizes
    gets another plan at that call.
    Raises ValueError for a model in training mode or a dtype that plans do not know, and CaptureError where no
    submodule can be followed either.
    The plan has the model's weights of this moment. It notices when they are replaced or written and then raises
    RuntimeError until ``refresh()``; only writes through ``.data``, NumPy or DLPack it cannot see.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("optimize plans inference, but the model is in training mode: call model.eval() first.")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    policy = Policy(winograd=winograd, tune=tune)
    try:
        return Optimized(model, args, policy, dtype)
    except CaptureError as refusal:
        return Piecewise(model, args, policy, dtype, refusal)
