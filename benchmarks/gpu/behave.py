"""How our kernels live with PyTorch on a GPU: streams, graphs, memory, devices, autograd. Each check raises
AssertionError with a sentence. They use CUDA C++ kernels of every kind, by name, and functions of several Triton
kernels.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

import fastconv
from benchmarks.gpu import functions
from fastconv import functional as ours
from fastconv import registry
from fastconv.kernels import triton
from fastconv.problem import Problem
from fastconv.registry import Kernel
from fastconv.testing import inputs

DEVICE = "cuda"
CYCLES = 200_000_000  # of a wait on the device: some tenth of a second
REPEATS = 50  # runs that must have the same bits
# One of each family, wgrad with its workspace and second kernel among them.
CALLS = (
    ("conv2d/fprop_igemm_sm80", "n4c32h29w31_k48r3s3_p1_bf16nhwc"),
    ("conv2d/dgrad_igemm_sm80", "n4c32h29w31_k48r3s3_p1_bf16nhwc_dgrad"),
    ("conv2d/wgrad_igemm_sm80", "n4c32h29w31_k48r3s3_p1_bf16nhwc_wgrad"),
    ("conv2d/fprop_igemm_simt", "n4c32h29w31_k48r3s3_p1_f32nchw"),
    ("dwconv2d/fprop_depthwise_simt", "n4c40h29w31_k40r3s3_p1_g40_f16nhwc"),
    ("dwconv2d/wgrad_depthwise_simt", "n4c40h29w31_k40r3s3_p1_g40_f16nhwc_wgrad"),
    ("avgpool2d/fprop_window_simt", "avgpool2d_n4c40h29w31_r3s3_u2_p1_f16nhwc"),
)
# A convolution, its training batch norm and what is behind them, each with its gradients.
FUNCTIONS = (
    "conv2d_batch_norm/n4c32h29w31_k48r3s3_p1_bf16nhwc_relu/n4c48h29w31_k32r1s1_bf16nhwc",
    "conv2d_batch_norm/n4c32h29w31_k48r1s1_f16nhwc_silu/n4c48h29w31_k40r3s3_p1_f16nhwc",
    "conv2d_batch_norm/n4c32h29w31_k48r3s3_p1_f32nchw_res_relu",
)


def as_row(function: functions.Function) -> Kernel:
    """A step of a function under a kernel's name: its result and gradients in one row, on Triton's kernels alone."""

    def run(problem: Problem, **tensors: Tensor) -> Tensor:
        with chosen("*_triton") if DEVICE == "cuda" else nullcontext():
            return torch.cat([t.flatten().float() for t in functions.step(function.own, tensors)])

    return Kernel(function.name, "conv2d", "fprop", (DEVICE,), lambda _: None, run)


def prepared() -> list:
    """(kernel, problem, operands on the GPU, result in eager mode) of every call, and of every function where Triton is
    installed.
    """
    found = []
    for name, text in CALLS:
        kernel, problem = registry.kernel(name), Problem(text)
        assert kernel.refuses(problem) is None, f"{name} on {text}: {kernel.refuses(problem)}"
        if problem.is_conv:
            tensors = inputs.make(problem, 0, integer=False).named(problem)
        else:
            tensors = {"x": torch.randn(inputs.shapes(problem)["x"]).to(inputs.DTYPES[problem.dtype])}
        tensors = {key: t.to(DEVICE) for key, t in tensors.items()}
        if not problem.is_conv:
            tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
        result = kernel.run(problem, **tensors)
        torch.cuda.synchronize()
        found.append((kernel, problem, tensors, result))
    return found + (prepared_functions(FUNCTIONS) if triton.missing() is None else [])


def prepared_functions(texts: tuple[str, ...]) -> list:
    """The same of some functions. Running statistics are left out, because every call moves them."""
    found = []
    for function in map(functions.parsed, texts):
        row, tensors = as_row(function), function.operands(DEVICE)
        tensors = {key: t for key, t in tensors.items() if "running" not in key}
        found.append((row, function.first, tensors, row.run(function.first, **tensors)))
    torch.cuda.synchronize()
    return found


def equal(one: Tensor, other: Tensor, sentence: str) -> None:
    assert torch.equal(one, other), sentence


def stream() -> None:
    """Kernels run behind what is queued on the current stream, and on no other."""
    for kernel, problem, tensors, expected in prepared():
        side = torch.cuda.Stream()
        late = {key: torch.full_like(t, float("nan")) for key, t in tensors.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(CYCLES)
            for key, t in tensors.items():
                late[key].copy_(t)
            result = kernel.run(problem, **late)
        side.synchronize()
        equal(result, expected, f"{kernel.name} did not wait for the work before it on its stream.")


def no_wait() -> None:
    """A call returns while the device is still busy with what came before it."""
    for kernel, problem, tensors, _ in prepared():
        torch.cuda._sleep(CYCLES)
        event = torch.cuda.Event()
        event.record()
        start = time.perf_counter()
        kernel.run(problem, **tensors)
        spent, done = time.perf_counter() - start, event.query()
        torch.cuda.synchronize()
        assert not done, f"{kernel.name} waited for the device: its call took {spent:.3g} s."


def graph() -> None:
    """A captured call computes with what its operands hold at each replay."""
    for kernel, problem, tensors, expected in prepared():
        fixed = {key: t.clone() for key, t in tensors.items()}
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            result = kernel.run(problem, **fixed)
        for scale in (1.0, 0.5):  # a power of two: every bit of the result scales
            for key in fixed:
                fixed[key].copy_(tensors[key] * (scale if key != "w" else 1.0))
            captured.replay()
            torch.cuda.synchronize()
            wanted = expected if scale == 1.0 else kernel.run(problem, **fixed)
            equal(result, wanted, f"{kernel.name}, replayed from a graph, gives other bits than called.")


def streams() -> None:
    """Calls on two streams at once, with workspaces of their own, disturb each other in nothing."""
    for kernel, problem, tensors, expected in prepared():
        sides = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        results = []
        for i in range(40):
            with torch.cuda.stream(sides[i % 2]):
                results.append(kernel.run(problem, **tensors))
        torch.cuda.synchronize()
        for result in results:
            equal(result, expected, f"{kernel.name} on two streams at once gave other bits.")


def repeated() -> None:
    """The same bits in every run."""
    for kernel, problem, tensors, expected in prepared():
        for _ in range(REPEATS):
            result = kernel.run(problem, **tensors)
            equal(result, expected, f"{kernel.name} gave other bits in another run.")


def memory() -> None:
    """All memory is PyTorch's: what it has reserved explains what the device has lost."""
    calls = prepared()
    torch.cuda.synchronize()
    free, reserved = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    for _ in range(20):
        for kernel, problem, tensors, _ in calls:
            kernel.run(problem, **tensors)
    torch.cuda.synchronize()
    lost = free - torch.cuda.mem_get_info()[0] - (torch.cuda.memory_reserved() - reserved)
    assert lost <= 0, f"{lost} bytes of the device's memory went elsewhere."


@contextmanager
def chosen(pattern: str):
    with fastconv.config(kernel=pattern, strict=True):
        yield


def autograd() -> None:
    """The operators, their gradients and autocast on our kernels, against PyTorch's on the CPU in float64."""
    torch.manual_seed(0)
    x = torch.randint(-2, 3, (2, 16, 9, 8)).float()
    w, b = torch.randint(-2, 3, (24, 16, 3, 2)).float(), torch.randint(-2, 3, (24,)).float()
    for dtype in (torch.float32, torch.float16):
        results = []
        for library, device, wide in ((ours, DEVICE, dtype), (torch.nn.functional, "cpu", torch.float64)):
            leaves = [t.to(device, wide, copy=True).requires_grad_() for t in (x, w, b)]
            with chosen("*_simt,*_sm80"):
                y = library.max_pool2d(library.conv2d(*leaves, stride=2, padding=1), 2, 1)
                y.sum().backward()
            results.append([y, *(leaf.grad for leaf in leaves)])
        torch.cuda.synchronize()
        for mine, exact in zip(*results, strict=True):
            equal(mine.cpu().double(), exact, f"The operators in {dtype} differ from PyTorch's in float64.")


def device() -> None:
    """Tensors of another than the current device; with one GPU, that the current device stays what it was."""
    before, last = torch.cuda.current_device(), torch.cuda.device_count() - 1
    for kernel, problem, tensors, expected in prepared():
        there = {key: t.to(f"cuda:{last}") for key, t in tensors.items()}
        result = kernel.run(problem, **there)
        assert result.device.index == last and torch.cuda.current_device() == before
        equal(result.to(expected.device), expected, f"{kernel.name} on device {last} gave other bits.")


def refusal() -> None:
    """What cannot be started is an error, and the next call works."""
    kernel, problem, tensors, expected = prepared()[0]
    for broken in ({**tensors, "w": tensors["w"].cpu()}, {"x": tensors["x"]}):
        try:
            kernel.run(problem, **broken)
        except RuntimeError:
            pass
        else:
            raise AssertionError(f"{kernel.name} took operands that cannot be right.")
    equal(kernel.run(problem, **tensors), expected, f"{kernel.name} did not recover from an error.")


def check(name: str) -> dict:
    """Runs one of them by its name."""
    globals()[name]()
    return {"outcome": "ok"}
