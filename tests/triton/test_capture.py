"""Nothing is compiled, measured or waited for while a CUDA graph is captured. There is no GPU: a flag stands for the
capture, tensors without values for those of a GPU, and Triton's own binder and compiler say what a start would compile.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime.jit import MockTensor  # noqa: E402

from fastconv import functional  # noqa: E402
from fastconv.functional import conv_norm, conv_norm_ops  # noqa: E402
from fastconv.kernels.triton import launch as launching  # noqa: E402

from .test_compilations import ARCHITECTURE, BUCKETS, compiled, launches  # noqa: E402

F16 = torch.float16
# Of conv2d_batch_norm: shapes of input and filter, and what else it is given, shapes too where they are tensors.
CALLS = {
    "second": ((2, 64, 9, 8), (64, 64, 1, 1), {"activation": "relu", "second": (64, 64, 3, 3), "second_padding": 1}),
    "chain": ((2, 64, 9, 8), (64, 64, 3, 3), {"padding": 1, "second": (64, 64, 1, 1), "second_activation": "relu"}),
    "residual": ((2, 64, 9, 8), (64, 64, 3, 3), {"activation": "silu", "padding": 1, "residual": (2, 64, 9, 8)}),
}
# Operators whose bodies run instead of what tracing is told of them.
OPERATORS = (conv_norm_ops.conv2d_moments, conv_norm_ops.norm_conv2d, conv_norm_ops.norm_apply, conv_norm_ops.norm_grad)
BODIES = {operator._opoverload: operator._init_fn for operator in OPERATORS}


class FakeDriver:
    """Of a GPU that is not there: what Triton asks before it compiles, under a number that one test uses alone."""

    numbers = count(77)

    def __init__(self) -> None:
        self.number = next(self.numbers)

    def get_current_device(self) -> int:
        return self.number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, launching.WARP_SIZE)


class Device:
    """The stand-in for a GPU. capturing: whether its stream is; started: kernels since it was last emptied."""

    def __init__(self, monkeypatch) -> None:
        self.capturing, self.started = False, []
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(triton.runtime.driver, "_active", FakeDriver())

    def start(self, launch: launching.Launch) -> None:
        """Compiles what is not compiled yet, where that is allowed, and runs nothing."""
        arguments = {n: MockTensor(v.dtype) if isinstance(v, Tensor) else v for n, v in launch.arguments.items()}
        with launch._compiles(torch.device("cuda")):
            launch.kernel.warmup(grid=launch.grid, num_warps=launch.warps, num_stages=launch.stages, **arguments)
        self.started.append(launch.kernel.__name__)


@pytest.fixture
def device(monkeypatch) -> Device:
    return Device(monkeypatch)


def test_nothing_is_compiled_while_a_graph_is_captured(tmp_path, device):
    """A kernel that an earlier call compiled runs; another is refused, and nothing is compiled for it."""
    cold, warm = (launches(name, BUCKETS[name][0])[0] for name in list(BUCKETS)[-2:])
    with compiled(tmp_path) as anew:
        device.start(warm)
        assert len(anew) == 1
        device.capturing = True
        device.start(warm)
        with pytest.raises(RuntimeError, match=r"norm_fprop is not compiled yet .* run the same call once before"):
            device.start(cold)
        assert len(anew) == 1
        device.capturing = False
        device.start(cold)
        assert len(anew) == 2


class Bodies(TorchDispatchMode):
    """Operators of the function run on tensors of the meta device as they would on a GPU's."""

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        with self if operator in BODIES else nullcontext():
            return BODIES.get(operator, operator)(*arguments, **(named or {}))


def step(dtype: torch.dtype, source: tuple, filters: tuple, options: dict) -> None:
    """A convolution with its training norm, forwards and backwards, on tensors without values."""

    def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        t = torch.empty(shape, device="meta", dtype=dtype)
        t = t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t
        return t.requires_grad_()

    channels = filters[0]
    running = [torch.empty(channels, device="meta") for _ in range(2)]
    given = {name: leaf(*v, dtype=dtype) if isinstance(v, tuple) else v for name, v in options.items()}
    operands = leaf(*source, dtype=dtype), leaf(*filters, dtype=dtype), *running, leaf(channels), leaf(channels)
    functional.conv2d_batch_norm(*operands, **given).sum().backward()


@pytest.mark.parametrize("name", CALLS)
def test_a_convolution_and_its_training_norm_are_captured_after_one_call(name, tmp_path, device, monkeypatch):
    """Forwards and backwards: cold they are refused and nothing is compiled; once run, they start the same kernels and
    compile none. Nothing asks a tensor for a value, which these have not.
    """
    monkeypatch.setattr(launching.Launch, "__call__", lambda launch: device.start(launch))
    monkeypatch.setattr(conv_norm, "DEVICES", ("meta",))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # which the meta device does not know
    source, filters, options = CALLS[name]
    with compiled(tmp_path) as anew, Bodies():
        device.capturing = True
        with pytest.raises(RuntimeError, match=r"is not compiled yet .* run the same call once before"):
            step(F16, source, filters, options)
        assert anew == [] and device.started == []
        device.capturing = False
        step(F16, source, filters, options)
        first, made = list(device.started), len(anew)
        assert made >= 4 and "sums" in first and "merge" in first
        device.started.clear()
        device.capturing = True
        step(F16, source, filters, options)
        assert device.started == first and len(anew) == made
