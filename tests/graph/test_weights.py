"""What a plan keeps of its weights: the forms its kernels read, and nothing that they are packed from."""

from __future__ import annotations

import copy
import os
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import fastconv
from fastconv import load_plan, optimize
from fastconv._native import C
from fastconv.graph import plan as plans
from fastconv.graph.mapped import MappedFile
from fastconv.graph.partition import Part
from fastconv.graph.passes import fold_batch_norm
from fastconv.graph.weights import Weights
from tests.graph import networks
from tests.graph.test_plans import assert_right

MAPS = Path("/proc/self/smaps")


@pytest.fixture
def wide():
    """A network of a few megabytes: convolutions with batch norms, and linear layers behind a map of several pixels."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 64, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 192, 3),
        nn.BatchNorm2d(192),
    ]
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192 * 16, 300), nn.ReLU(), nn.Linear(300, 10)]
    return networks.settle(nn.Sequential(*layers, *head)), torch.randn(2, 3, 20, 24)


def _resident(path: Path) -> int:
    """Bytes of a file that lie in this process's memory."""
    sizes, here = 0, False
    for line in MAPS.read_text().splitlines():
        if "-" in line.split()[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            sizes += int(line.split()[1]) * 1024
    return sizes


def test_folded_filters_are_gone_once_they_are_packed(wide, monkeypatch):
    model, x = wide
    made = []
    make = fold_batch_norm.Folded.make

    def counted(self):
        folded = make(self)
        made.append(weakref.ref(folded))
        return folded

    monkeypatch.setattr(fold_batch_norm.Folded, "make", counted)
    plan = optimize(model, x)
    assert not made
    assert_right(plan, model, x)
    assert len(made) == 2
    assert not any(folded() is not None for folded in made)
    assert_right(plan, model, torch.cat([x, x, x]))  # other sizes fold again only where a kernel has another form
    plan(x)
    assert len(made) <= 4


@pytest.mark.skipif(not MAPS.exists(), reason="the process's memory is read from /proc")
def test_a_file_s_filters_leave_memory_once_they_are_packed(wide, tmp_path):
    model, x = wide
    path = tmp_path / "plan.safetensors"
    optimize(model, x).save(path)
    plan = load_plan(path)
    assert_right(plan, model, x)
    assert path.stat().st_size > 3 << 20
    assert _resident(path) < path.stat().st_size // 4
    small = plan.report.footprints[0].constants
    assert small > 3 << 20  # the forms are there instead


def test_a_plan_outlives_its_file_s_name(wide, tmp_path):
    model, x = wide
    path = tmp_path / "plan.safetensors"
    optimize(model, x).save(path)
    plan = load_plan(path)
    assert_right(plan, model, x)
    plan.save(path)  # in the place of the one it reads
    again = load_plan(path)
    path.unlink()
    for n in (5, 3):
        images = torch.randn(n, *x.shape[1:])
        assert_right(plan, model, images)
        assert_right(again, model, images)
    assert_right(copy.deepcopy(plan), model, x)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_written_to_is_noticed(wide, tmp_path):
    model, x = wide
    path = tmp_path / "plan.safetensors"
    optimize(model, x).save(path)
    plan = load_plan(path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(RuntimeError, match=r"plan\.safetensors was written to since the plan was loaded from it"):
        plan(x)


def test_a_failing_save_leaves_the_old_file(wide, tmp_path, monkeypatch):
    model, x = wide
    path = tmp_path / "plan.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        optimize(model, x).save(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_made_again_is_not_copied_stale(wide, tmp_path):
    model, x = wide
    plan = optimize(model, x)
    plan(x)
    with torch.no_grad():
        model[0].weight.mul_(2)
    for use in (copy.deepcopy, lambda p: p.save(tmp_path / "plan"), lambda p: p.timings(x)):
        with pytest.raises(RuntimeError, match=r"changed after the plan was made: call refresh\(\)"):
            use(plan)
    plan.refresh()
    assert_right(copy.deepcopy(plan), model, x)


def test_forms_go_with_the_last_program_that_reads_them(wide, monkeypatch):
    model, x = wide
    monkeypatch.setattr(plans, "MOST_PROGRAMS", 1)
    plan = optimize(model, x)
    for winograd in (True, False, True):
        with fastconv.config(winograd=winograd):
            assert_right(plan, model, x)
        (read,) = plan.units[0]._constants.values()
        assert {id(form) for form in plan.units[0].forms.made.values()} <= {id(constant) for constant in read}


def test_batches_of_several_sizes_share_one_arena(wide):
    model, x = wide
    plan = optimize(model, x)
    for n in (1, 6, 2, 6, 1):
        plan(torch.randn(n, *x.shape[1:]))
    unit = plan.units[0]
    assert len(unit.programs) == 3
    assert unit.arenas.bytes == max(program.arena_bytes for program in unit.programs.values())


def test_parts_share_one_arena():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LogSoftmax(-1), nn.Conv2d(8, 4, 3)).eval()
    plan = optimize(model, torch.randn(2, 3, 9, 9))
    first, _, last = plan.units
    assert first.arenas is last.arenas


def test_what_pytorch_runs_is_made_once(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(2), nn.GroupNorm(2, 8), nn.Linear(16, 4)).eval()
    x = torch.randn(2, 3, 6, 6)
    optimize(model, x).save(tmp_path / "plan")
    plan = load_plan(tmp_path / "plan")
    assert_right(plan, model, x)
    left = [node for unit in plan.units if isinstance(unit, Part) for node in unit.inputs]
    names = [node.target for node in left if node.op == "get_attr"]
    assert names and all(plan.network.tensors[name] is plan.network.tensors[name] for name in names)


def test_names_of_one_entry():
    weights = Weights({"a": torch.ones(2), "b": torch.zeros(3, 4).t()})
    assert weights.like("b").stride() == (1, 4) and weights.like("b").device.type == "meta"
    assert set(weights.only({"a"})) == {"a"} and len(weights) == 2


def test_every_dtype_of_a_file(tmp_path):
    from safetensors.torch import save_file

    from fastconv.graph.mapped import DTYPES

    tensors = {str(dtype): torch.arange(6).to(dtype).view(2, 3) for dtype in DTYPES.values()}
    tensors["empty"] = torch.empty(0, 5)
    save_file(tensors, tmp_path / "t", metadata={"words": "some"})
    file = MappedFile(tmp_path / "t")
    assert file.metadata == {"words": "some"} and set(file.tensors) == set(tensors)
    for name, expected in tensors.items():
        read = file.tensors[name].make()
        assert torch.equal(read, expected) and read.dtype == expected.dtype
        file.tensors[name].release()
        assert torch.equal(file.tensors[name].make(), expected)


def test_a_form_is_not_kept_where_packing_failed(wide, monkeypatch):
    model, x = wide
    plan = optimize(model, x)

    def fail(*_):
        raise MemoryError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(C, "pack", fail)
        with pytest.raises(MemoryError):
            plan(x)
    assert_right(plan, model, x)
