"""The steps of a plan through the rows of the list, recorded as on a GPU. Here they run on the CPU, where a recorder
that runs a function again stands for a CUDA graph."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

import fastconv
from fastconv.graph import optimize, optimized
from fastconv.graph.device_plan import DevicePlan
from fastconv.graph.recorded import CudaGraphs, Recorded
from tests.graph import networks
from tests.graph.test_plans import assert_right


class Again:
    """Runs what it recorded again, into the tensors of the first time; counts both."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, function):
        results, self.recorded = function(), self.recorded + 1

        def replay():
            self.replayed += 1
            for result in results:
                result.fill_(float("nan"))
            for result, again in zip(results, function(), strict=True):
                result.copy_(again)

        return results, replay


@pytest.fixture
def recorder(monkeypatch) -> Again:
    """Makes every plan one for a device, the CPU."""
    recorder = Again()

    def plan(network, part, policy, arenas, device):
        return DevicePlan(network, part, torch.device("cpu"), recorder)

    monkeypatch.setattr(optimized, "_plan", plan)
    return recorder


@pytest.mark.parametrize("kernels", ["*_aten", "*"])
@pytest.mark.parametrize("name", networks.ALL)
def test_every_network(recorder, name, kernels):
    model, x = networks.make(name, torch.float32)
    with fastconv.config(kernel=kernels):
        plan = optimize(model, x)
        plan(x)
        assert_right(plan, model, x)
        x = x.contiguous(memory_format=torch.channels_last)
        assert_right(plan, model, torch.cat([x, x]))
        for y, e in zip(pytree.tree_leaves(plan(x)), pytree.tree_leaves(model(x)), strict=True):
            if name in networks.PLANNED:
                assert y.stride() == e.stride()
    assert recorder.recorded and recorder.replayed > recorder.recorded


def test_each_shape_is_recorded_once(recorder):
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x)
    for n in (1, 3, 1, 3, 1):
        assert_right(plan, model, torch.randn(n, *x.shape[1:]))
    assert (recorder.recorded, recorder.replayed) == (2, 5)


def test_a_result_s_memory_is_its_own(recorder):
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x)
    first = plan(x)
    kept = first.clone()
    plan(torch.randn_like(x))
    assert torch.equal(first, kept)


def test_many_threads(recorder):
    model, x = networks.make("inception", torch.float32)
    plan = optimize(model, x)
    inputs = [torch.randn_like(x) for _ in range(8)]
    expected = [plan(i) for i in inputs]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: all(torch.equal(plan(inputs[i]), expected[i]) for _ in range(5)), range(8)))


def test_no_images_and_changed_weights(recorder):
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x)
    assert plan(x[:0]).shape == (0, 10)
    plan(x)
    with torch.no_grad():
        model.first[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"call refresh\(\)"):
        plan(x)
    plan.refresh()
    assert_right(plan, model, x)
    assert plan.timings(x)[0].seconds > 0


def test_inputs_are_copied_to_where_they_were_recorded():
    seen, recorder = [], Again()
    x = torch.arange(6.0).view(2, 3).t()

    def function(inputs):
        seen.append(inputs[0].data_ptr())
        return [inputs[0] + 1]

    recorded = Recorded(function, [x], recorder)
    assert torch.equal(recorded.run([x + 5])[0], x + 6)
    assert len(set(seen)) == 1 and x.data_ptr() not in seen


def test_an_input_on_another_device_is_named():
    model, x = networks.make("residual", torch.float32)
    signature = optimize(model, x).signature.on("cuda")
    with pytest.raises(ValueError, match="is on cpu, but the plan runs on cuda"):
        signature.check((x,), {})


def test_a_cuda_graph_is_captured_after_warm_ups_on_its_stream(monkeypatch):
    """With a stand-in for torch.cuda that writes down what happens."""
    said: list[str] = []

    @contextmanager
    def during(name, *_, **__):
        said.append(name)
        yield
        said.append(f"end of {name}")

    stream = SimpleNamespace(wait_stream=lambda _: said.append("wait"))
    stand_in = SimpleNamespace(
        device=partial(during, "device"), stream=partial(during, "stream"), graph=partial(during, "capture"),
        Stream=lambda: stream, current_stream=lambda: stream,
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: said.append("replay")),
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", stand_in)

    def function():
        said.append("work")
        return [torch.ones(2)]

    results, replay = CudaGraphs(torch.device("cuda", 0)).record(function)
    assert torch.equal(results[0], torch.ones(2))
    warm = ["device", "wait", "stream", "work", "work", "end of stream", "wait"]
    assert said == [*warm, "capture", "work", "end of capture", "end of device"]
    said.clear()
    replay()
    assert said == ["device", "replay", "end of device"]
