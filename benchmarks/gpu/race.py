"""One problem on the GPU: all of our kernels that accept it beside PyTorch's call (cuDNN, which may try its
algorithms), each checked against float32 arithmetic before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu import clock, plan
from fastconv import registry
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import inputs, peer

PEER = "pytorch"
DEVICE = "cuda"
# Of ||y - y32|| / ||y32||, generously: a wrong tap or a lost part is orders of magnitude more.
FARTHEST = {"f32": 2e-5, "tf32": 3e-3, "f16": 3e-3, "bf16": 2e-2}


@contextmanager
def pytorch(tf32: bool) -> Iterator[None]:
    """PyTorch at its best: cuDNN's kernels by search. tf32: whether it may multiply float32 so."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            yield
    finally:
        matmul.allow_tf32 = before


def operands(problem: Problem, count: int) -> list[dict[str, Tensor]]:
    """``count`` sets of random operands on the GPU."""
    return [_operands(problem) for _ in range(count)]


def _operands(problem: Problem) -> dict[str, Tensor]:
    dtype, sizes, format = inputs.DTYPES[problem.dtype], inputs.shapes(problem), inputs.memory_format(problem)

    def values(shape: tuple[int, ...]) -> Tensor:
        made = torch.randn(shape, device=DEVICE, dtype=dtype)
        return made.contiguous(memory_format=format) if len(shape) == 4 else made

    names = inputs.operand_names(problem) if problem.is_conv else ("y" if problem.pass_ == "dgrad" else "x",)
    tensors = {name: values(sizes[name]) for name in names}
    if problem.bias:
        tensors["bias"] = values((sizes[inputs.written(problem)][1],))
    if problem.residual:
        tensors["residual"] = values(sizes[inputs.written(problem)])
    if problem.index != "none" and problem.pass_ == "dgrad":
        tensors["index"] = places(problem, values(sizes["x"]))
    elif problem.index != "none":
        kind = {"u8": torch.uint8, "i64": torch.int64}[problem.index]
        tensors["index"] = torch.empty(sizes["y"], device=DEVICE, dtype=kind).contiguous(memory_format=format)
    return tensors


def places(problem: Problem, x: Tensor) -> Tensor:
    """Where the maxima of x lie, in the problem's numbering: made by PyTorch, on no kernel of ours."""
    h, w = problem.h, problem.w
    if "adaptive" in problem.op:
        return functional.adaptive_max_pool2d(x, (h.out, w.out), return_indices=True)[1]
    geometry = ((h.window, w.window), (h.stride, w.stride), (h.pad_lo, w.pad_lo), (h.dilation, w.dilation))
    _, found = functional.max_pool2d(x, *geometry, problem.ceil_mode, True)
    if problem.index == "i64":
        return found
    return taps_of(problem, found)


def taps_of(problem: Problem, positions: Tensor) -> Tensor:
    """Positions in the plane as numbers of taps in their windows."""
    h, w = problem.h, problem.w

    def tap(axis, place: Tensor, dim: int) -> Tensor:
        start = torch.arange(axis.out, device=positions.device) * axis.stride - axis.pad_lo
        shape = [1, 1, 1, 1]
        shape[dim] = -1
        return (place - start.view(shape)) // axis.dilation

    taps = tap(h, positions // w.size, 2) * w.window + tap(w, positions % w.size, 3)
    return taps.to(torch.uint8).contiguous(memory_format=inputs.memory_format(problem))


def torchs(problem: Problem, tensors: dict[str, Tensor]) -> Callable[[], object]:
    """PyTorch's call, unfused where the problem has an epilogue."""
    if call := peer.torch_call(problem, tensors):
        return call
    row = next(k for k in registry.kernels() if k.is_torch and k.computes(problem))
    return lambda: row.run(problem, **tensors)


def exact(problem: Problem, tensors: dict[str, Tensor]) -> Tensor:
    """PyTorch's result in float32, without tf32."""
    wide = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    with pytorch(tf32=False):
        result = torchs(problem.replace(dtype="f32"), wide)()
    return result if isinstance(result, Tensor) else next(t for t in result if t is not None)


def ours(kernel: Kernel, problem: Problem, tensors: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A call that writes a tensor of its own."""
    name = inputs.written(problem)
    blank = torch.full(inputs.shapes(problem)[name], float("nan"), device=DEVICE, dtype=inputs.DTYPES[problem.dtype])
    out = blank.contiguous(memory_format=inputs.memory_format(problem))
    return lambda: kernel.run(problem, out=out, **tensors)


def distance(result: object, expected: Tensor) -> float:
    """||result - expected|| / ||expected||; infinite where something was not written."""
    out = result if isinstance(result, Tensor) else next(t for t in result if t is not None)
    if out.isnan().any():
        return float("inf")
    return ((out.float() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def race(problem: Problem) -> dict:
    """Times of all, by name, in microseconds; the reason where one was refused or wrong."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    sets = operands(problem, clock.sets_needed(problem.bytes, l2))
    expected, rows = exact(problem, sets[0]), {}
    with pytorch(tf32=problem.dtype == "tf32"):
        for name, kernel in [(PEER, None), *((k.name, k) for k in plan.kernels() if k.computes(problem))]:
            rows[name] = _standing(problem, kernel, sets, expected)
    wrong = [name for name, row in rows.items() if "wrong" in row]
    found = {"outcome": "wrong" if wrong else "ok", "rows": rows, "flops": problem.flops, "bytes": problem.bytes}
    return found | ({"reason": f"Wrong: {', '.join(wrong)}."} if wrong else {})


def _standing(problem: Problem, kernel: Kernel | None, sets: list[dict[str, Tensor]], expected: Tensor) -> dict:
    """One entrant's times, or why it has none; None is PyTorch."""
    if kernel is not None and (reason := kernel.refuses(problem)):
        return {"refused": reason}
    calls = [torchs(problem, t) if kernel is None else ours(kernel, problem, t) for t in sets]
    far = distance(calls[0](), expected)
    if not far <= FARTHEST[problem.dtype]:
        return {"wrong": f"Its result is {far:.3g} of the result's norm away from float32's."}
    return clock.as_dict(clock.seconds(calls)) | {"distance": far}


def compiled(problem: Problem) -> dict:
    """What torch.compile makes of PyTorch's call, when it may try everything."""
    sets = operands(problem, clock.sets_needed(problem.bytes, torch.cuda.get_device_properties(0).L2_cache_size))
    function = torch.compile(_called(problem), mode="max-autotune-no-cudagraphs", dynamic=False)
    with pytorch(tf32=problem.dtype == "tf32"):
        timing = clock.seconds([lambda t=t: function(t) for t in sets])
    return {"outcome": "ok", "rows": {"torch.compile": clock.as_dict(timing)}}


def _called(problem: Problem) -> Callable[[dict[str, Tensor]], Tensor]:
    """The forward call in PyTorch's own words, geometry as constants, so that what follows it can be fused."""
    h, w = problem.h, problem.w
    window, stride = (h.window, w.window), (h.stride, w.stride)
    padding, dilation, groups = (h.pad_lo, w.pad_lo), (h.dilation, w.dilation), problem.groups
    tail = identity if problem.activation == "none" else getattr(functional, problem.activation)
    match problem.op:
        case "conv2d":

            def call(tensors: dict[str, Tensor]) -> Tensor:
                y = functional.conv2d(
                    tensors["x"], tensors["w"], tensors.get("bias"), stride, padding, dilation, groups
                )
                return tail(y + tensors["residual"] if "residual" in tensors else y)

            return call
        case "maxpool2d":
            return lambda tensors: functional.max_pool2d(tensors["x"], window, stride, padding)
        case "avgpool2d":
            return lambda tensors: functional.avg_pool2d(tensors["x"], window, stride, padding)
    raise ValueError(f"{problem} has no forward call that could be compiled.")


def identity(y: Tensor) -> Tensor:
    return y
