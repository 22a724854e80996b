"""Plans compute what their model does, for every batch and layout, and refuse what they were not made for."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fastconv
from fastconv.graph import load_plan, optimize
from fastconv.kernels.aten_map import takes_torch_s_pixels
from tests.graph import networks

# Of float32 results: their own rounding, and that of the folded weights, along a few layers.
ERROR = 2e-6


def assert_right(module: nn.Module, model: nn.Module, x: torch.Tensor, error: float = ERROR) -> None:
    """Within an L2 error of the model in float64."""
    with torch.no_grad():
        results, exact = module(x), copy.deepcopy(model).double()(x.double())
    assert pytree.tree_structure(results) == pytree.tree_structure(exact)
    for y, e in zip(pytree.tree_leaves(results), pytree.tree_leaves(exact), strict=True):
        assert y.shape == e.shape and y.dtype == x.dtype
        assert (y.double() - e).norm() <= error * e.norm()


@pytest.mark.parametrize("name", networks.ALL)
def test_a_plan_computes_what_its_model_does(name):
    model, x = networks.make(name, torch.float32)
    plan = optimize(model, x)
    assert_right(plan, model, x)
    assert_right(plan, model, x)  # from the program that is there
    assert_right(plan, model, x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", networks.PLANNED)
def test_one_plan_holds_a_whole_network(name):
    model, x = networks.make(name, torch.float32)
    report = optimize(model, x).report
    assert len(report.planned) == 1 and not report.left


@pytest.mark.parametrize("name", networks.PLANNED)
def test_a_swapped_network_is_one_plan_too(name):
    model, x = networks.make(name, torch.float32)
    exact = copy.deepcopy(model).double()(x.double())
    fastconv.swap(model)
    plan = optimize(model, x)
    assert len(plan.report.planned) == 1 and not plan.report.left
    for y, e in zip(pytree.tree_leaves(plan(x)), pytree.tree_leaves(exact), strict=True):
        assert (y.double() - e).norm() <= ERROR * e.norm()


def test_local_response_norms_of_swapped_networks():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(3, 2)).eval()
    x = torch.randn(2, 3, 12, 11)
    expected = model(x)
    fastconv.swap(model)
    plan = optimize(model, x)
    assert len(plan.report.planned) == 1 and not plan.report.left
    torch.testing.assert_close(plan(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", networks.PLANNED)
def test_no_images_give_no_results(name):
    model, x = networks.make(name, torch.float32)
    for y, e in zip(pytree.tree_leaves(optimize(model, x)(x[:0])), pytree.tree_leaves(model(x[:0])), strict=True):
        assert y.shape == e.shape


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("name", networks.PLANNED)
def test_any_batch_follows(name, batch):
    model, x = networks.make(name, torch.float32)
    plan = optimize(model, x[:1])
    assert_right(plan, model, torch.cat([x, x, x])[:batch])


@pytest.mark.parametrize("name", networks.PLANNED)
def test_strides_of_results_are_the_models(name):
    model, x = networks.make(name, torch.float32)
    plan = optimize(model, x)
    for format in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=format)
        with torch.no_grad():
            for y, e in zip(pytree.tree_leaves(plan(given)), pytree.tree_leaves(model(given)), strict=True):
                assert y.stride() == e.stride()


def test_a_model_that_counts_its_images_takes_as_many():
    """torch.export takes their number for a constant, without a word."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.stack([image.sum(0) for image in self.layer(x)])

    model = Counting().eval()
    for count in (1, 2):
        x = torch.randn(count, 3, 8, 8)
        plan = optimize(model, x)
        torch.testing.assert_close(plan(x), model(x), rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match=rf"made for \({count}, 3, 8, 8\)"):
            plan(torch.randn(3, 3, 8, 8))


def test_a_results_memory_is_its_own():
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x)
    first = plan(x)
    kept = first.clone()
    plan(torch.randn_like(x))
    assert torch.equal(first, kept)


def test_what_no_plan_knows_stays_pytorchs_and_is_named():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LogSoftmax(-1), nn.Conv2d(8, 4, 3)).eval()
    report = optimize(model, torch.randn(2, 3, 9, 9)).report
    assert report.left and len(report.planned) >= 2
    assert "stay PyTorch's" in str(report) and "aten." in str(report) and "<" not in str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model, x = networks.make("residual", dtype)
    error = {torch.float64: 1e-14, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert_right(optimize(model, x), model, x, error)


def test_without_winograd_no_kernel_of_a_plan_transforms():
    model, x = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)).eval(), torch.randn(1, 64, 28, 28)
    used = {}
    for winograd in (True, False):
        plan = optimize(model, x, winograd=winograd)
        plan(x)
        used[winograd] = {
            name for program in plan.units[0].programs.values() for stage in program.stages for name, _ in stage
        }
        assert_right(plan, model, x, 2e-6)
    assert any("winograd" in name for name in used[True]) and not any("winograd" in name for name in used[False])


# --- what a plan was not made for -------------------------------------------------------------------------------------


@pytest.fixture
def residual() -> tuple[nn.Module, torch.Tensor]:
    return networks.make("residual", torch.float32)


def test_wrong_inputs_get_a_sentence_and_the_plan_goes_on(residual):
    model, x = residual
    plan = optimize(model, x)
    for wrong, error, words in [
        ((x[:, :2],), ValueError, r"has shape \(2, 2, 26, 22\), but the plan was made for \(N, 3, 26, 22\)"),
        ((x[..., :20],), ValueError, "optimize the model again"),
        ((x[0],), ValueError, "has shape"),
        ((x.double(),), ValueError, "is torch.float64, but the plan was made for torch.float32"),
        ((x.to("meta"),), ValueError, "is on meta"),
        ((x, x), TypeError, "takes 1 inputs"),
        ((x.numpy(),), TypeError, "must be a tensor"),
        ((x.clone().requires_grad_(),), RuntimeError, "requires a gradient"),
    ]:
        with pytest.raises(error, match=words):
            plan(*wrong)
        assert_right(plan, model, x)


def test_strided_inputs_are_read_right(residual):
    model, x = residual
    plan = optimize(model, x)
    wide = torch.randn(2, 3, 26, 44)
    assert_right(plan, model, wide[..., ::2])
    assert_right(plan, model, x.transpose(2, 3).contiguous().transpose(2, 3))


def test_a_model_in_training_mode_is_refused(residual):
    model, x = residual
    model.train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        optimize(model, x)


def test_a_plan_is_no_place_for_training_moving_or_loading(residual):
    model, x = residual
    plan = optimize(model, x)
    assert plan.eval() is plan and not list(plan.parameters())
    for change in (plan.train, plan.double, lambda: plan.to("meta"), lambda: plan.load_state_dict({})):
        with pytest.raises(RuntimeError, match="source model"):
            change()
    assert_right(plan, model, x)


# --- weights that change ----------------------------------------------------------------------------------------------


def _load(model: nn.Module) -> None:
    model.load_state_dict({name: t + 0.1 if t.is_floating_point() else t for name, t in model.state_dict().items()})


def _step(model: nn.Module) -> None:
    model(torch.randn(2, 3, 26, 22)).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


def _replace(model: nn.Module) -> None:
    model.first[0].weight = nn.Parameter(torch.randn_like(model.first[0].weight))


def _write_buffer(model: nn.Module) -> None:
    model.first[1].running_mean.add_(1)


@pytest.mark.parametrize("change", [_load, _step, _replace, _write_buffer])
def test_changed_weights_are_noticed_and_refresh_takes_them(residual, change):
    model, x = residual
    plan = optimize(model, x)
    assert_right(plan, model, x)
    change(model)
    with pytest.raises(RuntimeError, match=r"changed after the plan was made: call refresh\(\)"):
        plan(x)
    plan.refresh()
    assert_right(plan, model, x)


def test_a_model_of_another_dtype_is_noticed(residual):
    model, x = residual
    plan = optimize(model, x)
    model.double()
    with pytest.raises(RuntimeError, match=r"call refresh\(\)"):
        plan(x)


# --- copies and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", networks.ALL)
def test_copies_and_files_compute_the_same(name, tmp_path):
    model, x = networks.make(name, torch.float32)
    plan = optimize(model, x)
    expected = pytree.tree_leaves(plan(x))
    plan.save(tmp_path / "plan.safetensors")
    for other in (
        copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)), load_plan(tmp_path / "plan.safetensors"),
    ):  # fmt: skip
        for y, e in zip(pytree.tree_leaves(other(x)), expected, strict=True):
            if name in networks.PLANNED:
                assert torch.equal(y, e)
            else:  # PyTorch's bits may depend on where a weight lies
                torch.testing.assert_close(y, e)
        with pytest.raises(RuntimeError, match="no source model"):
            other.refresh()


def test_damaged_files_are_refused(residual, tmp_path):
    from safetensors.torch import load_file, save_file

    model, x = residual
    path = tmp_path / "plan.safetensors"
    optimize(model, x).save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no plan that fastconv wrote"):
            load_plan(path)
    path.write_bytes(whole)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="without a plan"):
        load_plan(path)
    for words in ('{"format": 2}', "[]", '{"format": 1, "graph": [{"op": "call_function", "target": "os::system.x"}]}'):
        save_file(tensors, path, metadata={"fastconv.plan": words})
        with pytest.raises(ValueError, match="no plan that fastconv wrote"):
            load_plan(path)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_many_threads_run_one_plan():
    model, x = networks.make("inception", torch.float32)
    plan = optimize(model, x)
    inputs = [torch.randn_like(x) for _ in range(16)]
    expected = [plan(i) for i in inputs]

    def work(i: int) -> bool:
        return all(torch.equal(plan(inputs[(i + k) % 16]), expected[(i + k) % 16]) for k in range(50))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the process's memory is read from /proc")
@pytest.mark.parametrize("plans", [1, 4])
def test_ten_thousand_calls_of_many_threads_keep_memory_flat(plans):
    calls, threads = 10_000, 16
    pairs = [networks.make(name, torch.float32) for name in networks.PLANNED[:plans]]
    made = [optimize(model, x) for model, x in pairs]
    expected = [plan(x) for plan, (_, x) in zip(made, pairs, strict=True)]

    def work(i: int) -> bool:
        numbers = [(i + k) % plans for k in range(calls // threads)]
        return all(torch.equal(made[k](pairs[k][1]), expected[k]) for k in numbers)

    with ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(work, range(threads)))
        before = _resident()
        assert all(pool.map(work, range(threads)))
    assert _resident() - before < 8 << 20


def test_threads_that_come_first_together_make_one_program():
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: plan(x), range(8)))
    assert len(plan.units[0].programs) == 1
    assert all(torch.equal(y, results[0]) for y in results)


def test_results_do_not_depend_on_the_number_of_threads():
    model, x = networks.make("dense", torch.float32)
    plan, before, results = optimize(model, x, winograd=False), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            with fastconv.config(deterministic=True):
                results.append(plan(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


def test_memory_stays_flat_over_many_calls():
    model, x = networks.make("classic", torch.float32)
    plan = optimize(model, x)
    plan(x)
    before = fastconv.memory_stats()
    for _ in range(2000):
        plan(x)
    assert fastconv.memory_stats().live <= before.live


def test_nearest_pixels_that_torch_s_rounding_picks_stay_its_own():
    """Where its float arithmetic leads to other pixels than whole numbers do."""
    size, out = next((s, o) for s in range(2, 64) for o in range(s, 130) if not takes_torch_s_pixels(s, o))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(size=(out, out)), nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(1, 3, size, size)
    plan = optimize(model, x)
    assert list(plan.report.left) == ["aten.upsample_nearest2d.vec"]
    torch.testing.assert_close(plan(x), model(x).detach(), rtol=1e-5, atol=1e-5)
