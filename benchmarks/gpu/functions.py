"""Functions of several ops, which are no rows of the list, beside PyTorch's ops one after the other: each checked
against float32 arithmetic, result and gradients, then timed forwards and, where it has some, as a step of training.

A function is named "conv2d_batch_norm/FIRST" or "conv2d_batch_norm/FIRST/SECOND": its convolutions' problems, the first
with the residual and the activation behind the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import clock, race
from fastconv import config
from fastconv import functional as ours
from fastconv.kernels import pairs
from fastconv.problem import Problem
from fastconv.testing import inputs

PEER, OWN = "pytorch", "fastconv"
# A rounded result next to zero can fall on the other side of an activation's kink, in PyTorch's call as in ours: as far
# from float32's gradient as this many of PyTorch's distances is not wrong.
OF_PEER = 2.0
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Function:
    """One call by its name. first, second: the problems of its convolutions."""

    name: str
    first: Problem
    second: Problem | None

    @property
    def has_gradient(self) -> bool:
        return self.name == "conv2d_batch_norm"

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels that can run the whole of it, where there is a choice."""
        if self.has_gradient:
            return []
        taking = (p for p in pairs.pairs() if race.DEVICE in p.devices and not p.refuses(self.first, self.second))
        return [pair.name for pair in taking]

    @property
    def dtype(self) -> str:
        return self.first.dtype

    def operands(self, device: str) -> Tensors:
        """Random ones."""
        first, second = self.first, self.second
        sizes, channels = inputs.shapes(first), (first.k,)
        shapes = {"input": sizes["x"], "weight": sizes["w"]}
        if self.has_gradient:
            shapes |= dict.fromkeys(("norm_weight", "norm_bias", "running_mean", "running_var"), channels)
            shapes |= {"residual": sizes["y"]} if first.residual else {}
        else:
            shapes |= {"bias": channels, "second_bias": (second.k,)}
        shapes |= {"second": inputs.shapes(second)["w"]} if second else {}
        return {name: self._filled(name, shape, device) for name, shape in shapes.items()}

    def _filled(self, name: str, shape: tuple[int, ...], device: str) -> Tensor:
        dtype, format = inputs.DTYPES[self.dtype], inputs.memory_format(self.first)
        if len(shape) == 4:
            return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=format)
        if name.endswith("bias"):
            return torch.randn(shape, device=device, dtype=torch.float32 if self.has_gradient else dtype)
        return torch.rand(shape, device=device) + 0.5

    def own(self, t: Tensors) -> Tensor:
        """Our call."""
        if not self.has_gradient:
            biases = t["bias"], t["second_bias"]
            geometry = _geometry(self.first)[:3]
            tails = self.first.activation, self.second.activation
            return ours.depthwise_pointwise(t["input"], t["weight"], t["second"], *biases, *geometry, activations=tails)
        behind = {}
        if self.second:
            names = ("second_stride", "second_padding", "second_dilation", "second_groups")
            behind = dict(zip(names, _geometry(self.second), strict=True))
        return ours.conv2d_batch_norm(
            *(t.get(name) for name in ("input", "weight", "running_mean", "running_var", "norm_weight", "norm_bias")),
            *_geometry(self.first),
            activation=self.first.activation,
            residual=t.get("residual"),
            second=t.get("second"),
            **behind,
        )

    def peer(self, t: Tensors) -> Tensor:
        """PyTorch's calls."""
        y = functional.conv2d(t["input"], t["weight"], t.get("bias"), *_geometry(self.first))
        if self.has_gradient:
            running = t.get("running_mean"), t.get("running_var")
            y = functional.batch_norm(y, *running, t["norm_weight"], t["norm_bias"], training=True)
        y = _activated(self.first, y + t["residual"] if "residual" in t else y)
        if self.second is None:
            return y
        return _activated(self.second, functional.conv2d(y, t["second"], t.get("second_bias"), *_geometry(self.second)))


def _by(kernel: str, function: Function, tensors: Tensors) -> Tensor:
    """Our call on one kernel."""
    with config(kernel=kernel, strict=True):
        return function.own(tensors)


def parsed(text: str) -> Function:
    """The function of a name; ValueError where a problem is none."""
    name, *problems = text.split("/")
    first, *behind = (Problem(problem) for problem in problems)
    return Function(name, first, behind[0] if behind else None)


def _geometry(problem: Problem) -> tuple:
    """Stride, padding, dilation and groups, as PyTorch takes them."""
    h, w = problem.h, problem.w
    return (h.stride, w.stride), (h.pad_lo, w.pad_lo), (h.dilation, w.dilation), problem.groups


def _activated(problem: Problem, y: Tensor) -> Tensor:
    return y if problem.activation == "none" else getattr(functional, problem.activation)(y)


def step(call: Callable[[Tensors], Tensor], tensors: Tensors) -> list[Tensor]:
    """The result, and the gradients of all operands but the running statistics, for a gradient of all ones."""
    leaves = {name: t.detach().requires_grad_("running" not in name) for name, t in tensors.items()}
    y = call(leaves)
    wanted = [t for t in leaves.values() if t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, torch.ones_like(y))]


def forward(call: Callable[[Tensors], Tensor], tensors: Tensors) -> list[Tensor]:
    """The result."""
    with torch.no_grad():
        return [call(tensors)]


def distances(function: Function, tensors: Tensors) -> dict[str, list[float]]:
    """Of PyTorch's results and of ours from those of float32: the result first, then gradients."""
    run = step if function.has_gradient else forward
    wide = {name: t.float() for name, t in tensors.items()}
    with race.pytorch(tf32=False):
        exact = run(function.peer, wide)
    found = {}
    with race.pytorch(tf32=function.dtype == "tf32"):
        for name, call in ((PEER, function.peer), (OWN, function.own)):
            # Each moves running statistics of its own.
            own = {key: t.clone() if "running" in key else t for key, t in tensors.items()}
            found[name] = [race.distance(a, b) for a, b in zip(run(call, own), exact, strict=True)]
    return found


def wrong(function: Function, found: dict[str, list[float]]) -> list[int]:
    """Which of our results are too far."""
    least = race.FARTHEST[function.dtype]
    pairs = zip(found[OWN], found[PEER], strict=True)
    return [i for i, (own, peer) in enumerate(pairs) if not own <= max(least, OF_PEER * peer)]


def check(text: str) -> dict:
    """Both calls' distances and times."""
    function = parsed(text)
    tensors = function.operands(race.DEVICE)
    found = distances(function, tensors)
    if bad := wrong(function, found):
        reason = f"Results {bad} of {text} are too far from float32's: {found[OWN]}, PyTorch's {found[PEER]}."
        return {"outcome": "wrong", "reason": reason, "distance": found}
    times = {}
    with race.pytorch(tf32=function.dtype == "tf32"):
        for kind, run in (("forward", forward), ("step", step))[: 2 if function.has_gradient else 1]:
            calls = {PEER: partial(run, function.peer, tensors), OWN: partial(run, function.own, tensors)}
            calls |= {name: partial(run, partial(_by, name, function), tensors) for name in function.kernels}
            times[kind] = {name: clock.as_dict(clock.seconds([call])) for name, call in calls.items()}
    return {"outcome": "ok", "times": times, "distance": found}
