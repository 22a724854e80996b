"""fork, spawn, data-parallel training and pickles: a call in one process never harms a call in another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fastconv
from fastconv import functional

ROOT = Path(__file__).parents[2]
WORKERS = 8
PATIENCE = 60  # seconds until a worker counts as hanging


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    """Large enough for every thread of the pool."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 16, 40, 41, generator=generator), torch.randn(24, 16, 3, 3, generator=generator)


def everything(x: torch.Tensor, weight: torch.Tensor) -> bytes:
    """The bits of a forward and backward pass through convolutions and pools."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = functional.avg_pool2d(functional.max_pool2d(functional.conv2d(x, weight, padding=1), 3, 2, 1), 2)
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    return b"".join(t.detach().numpy().tobytes() for t in (y, *gradients))


class Convolved(Dataset):
    """Convolves in the worker that loads the item."""

    def __len__(self) -> int:
        return 2 * WORKERS

    def __getitem__(self, i: int) -> torch.Tensor:
        x, weight = operands()
        return functional.conv2d(x + i, weight)


def test_loader_workers_forked_after_the_first_call():
    x, weight = operands()
    functional.conv2d(x, weight)
    loader = DataLoader(Convolved(), batch_size=None, num_workers=WORKERS, timeout=PATIENCE)
    for i, y in enumerate(loader):
        assert torch.equal(y, functional.conv2d(x + i, weight))


FORKS = f"""
import os, signal, sys, time
import torch
from tests.faults.test_processes import everything, operands
torch.set_num_threads(2)
x, weight = operands()
x, weight = x[:, :, :20, :21].contiguous(), weight
expected = everything(x, weight)
children = []
for _ in range({WORKERS}):
    child = os.fork()
    if child == 0:
        os._exit(0 if everything(x, weight) == expected else 1)
    children.append(child)
end, left = time.monotonic() + {PATIENCE}, set(children)
while left and time.monotonic() < end:
    for child in list(left):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            left.remove(child)
            assert status == 0, status
    time.sleep(0.05)
for child in left:
    os.kill(child, signal.SIGKILL)
assert everything(x, weight) == expected  # the parent goes on with all its threads
sys.exit(f"{{len(left)}} children hang." if left else 0)
"""


def test_forks_after_the_first_call():
    """torch's own convolution hangs here: the child has none of the pool's threads. Ours runs on the thread it has."""
    result = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def compute(queue) -> None:
    queue.put(everything(*operands()))


def test_spawn():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=compute, args=(queue,))
    process.start()
    assert queue.get(timeout=PATIENCE) == everything(*operands())
    process.join(PATIENCE)
    assert process.exitcode == 0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2, 2)
    )


def train(rank: int, port: int, queue) -> None:
    """One rank of two: a step on half the batch, in both layouts of the weights."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = []
    for format in (torch.contiguous_format, torch.channels_last):
        model = network().to(memory_format=format)
        fastconv.swap(model)
        parallel = nn.parallel.DistributedDataParallel(model)
        x = torch.arange(2 * 3 * 10 * 12.0).sin().view(2, 3, 10, 12)[rank : rank + 1].contiguous(memory_format=format)
        parallel(x).square().sum().backward()
        found += [(p.grad.stride(), p.stride(), p.grad.numpy()) for p in model.parameters()]
    queue.put((rank, found))
    torch.distributed.barrier()  # a rank that leaves early may take the other's store with it
    queue.close(), queue.join_thread()
    # What holds the group keeps gloo's threads, and one of them can abort an orderly exit; test_spawn has one.
    os._exit(0)


def test_data_parallel_gradients(free_port):
    """Both ranks hold the mean gradient of the whole batch, laid out like its parameter (else DDP copies)."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=train, args=(rank, free_port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(queue.get(timeout=2 * PATIENCE) for _ in ranks)
    for process in ranks:
        process.join(PATIENCE)
        assert process.exitcode == 0
    model = network()
    whole = torch.arange(2 * 3 * 10 * 12.0).sin().view(2, 3, 10, 12)
    model(whole).square().sum().backward()
    expected = [p.grad / 2 for p in model.parameters()] * 2
    for rank in (0, 1):
        for (grad_stride, stride, gradient), mean in zip(found[rank], expected, strict=True):
            assert grad_stride == stride
            torch.testing.assert_close(torch.from_numpy(gradient), mean, rtol=1e-4, atol=1e-5)


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_sigterm_ends_a_benchmark_at_once_and_leaves_no_file(tmp_path):
    path = tmp_path / "a.json"
    problem = "n1c8h7w9_k8r3s3_p1_f32nhwc"
    command = [sys.executable, "-u", "-m", "fastconv", "bench", problem, "--seconds", "1000", "--json", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while "measured limits" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)  # into the timing
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=50)  # far less than the timing would take
    finally:
        process.kill()
    assert process.returncode == -signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
