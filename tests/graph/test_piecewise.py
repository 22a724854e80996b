"""A model that torch.export refuses runs with plans for the submodules that it can follow."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from fastconv.graph import Optimized, Piecewise, optimize, piecewise
from fastconv.graph.capture import CaptureError
from fastconv.models.detection import Finder
from tests import third_party
from tests.models.references import quick
from tests.models.thin_detectors import THIN


class Boxed:
    """A class of a model's own, which torch.export does not know."""

    def __init__(self, value: Tensor):
        self.value = value


class Unbox(nn.Module):
    def forward(self, boxed: Boxed) -> Tensor:
        return boxed.value


def block(c: int, k: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, k, 3, padding=1), nn.BatchNorm2d(k), nn.ReLU())


class Detector(nn.Module):
    """Values decide how often its head runs, and what lies between its parts is of its own class."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = block(3, 8)
        self.unbox = Unbox()
        self.levels = nn.ModuleList([nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 8, 3, stride=2)])
        self.head = nn.Conv2d(8, 4, 1)
        self.inner = Chooser()

    def forward(self, x: Tensor, *, shift: float = 0.0) -> dict[str, Tensor]:
        y = self.unbox(Boxed(self.backbone(x)))
        results = {"shift": y.mean() + shift}
        for number, level in enumerate(self.levels):
            y = level(y)
            results[f"level{number}"] = self.head(y)  # one head for maps of several sizes
        if (y > 0).sum() > 0:
            results["chosen"] = self.inner(y)
        results["depth"] = torch.tensor(self.head.out_channels)  # asked of a layer that may be a plan
        return results


class Chooser(nn.Module):
    """Refuses too, and holds a layer that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(8, 8), block(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if x.abs().max() > 1e-30 else self.second(x)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def assert_equal(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(results[name], value, rtol=1e-5, atol=1e-5)


def test_submodules_become_plans(detector):
    x = torch.randn(2, 3, 21, 18)
    plan = optimize(detector, x)
    assert isinstance(plan, Piecewise)
    assert set(plan.pieces) == {"backbone", "levels.0", "levels.1", "head", "inner.first"}
    with torch.no_grad():
        assert_equal(plan(x), detector(x))
        assert_equal(plan(x[:1], shift=2.0), detector(x[:1], shift=2.0))
    assert len(plan.pieces["head"].plans) == 2  # maps of two sizes


def test_the_plans_compute(detector):
    """What the pieces were made of no longer matters once they stand: no call reaches the layers themselves."""
    x = torch.randn(1, 3, 21, 18)
    plan, expected = optimize(detector, x), detector(x)
    calls = []
    for module in (detector.backbone, detector.levels[0], detector.head, detector.inner.first):
        module.register_forward_hook(lambda *_: calls.append(1))
    assert_equal(plan(x), expected)
    assert not calls


def test_the_report_names_what_stays_and_why(detector):
    text = str(optimize(detector, torch.randn(1, 3, 21, 18)))
    assert "torch.export cannot follow Detector" in text
    assert "backbone: 1 operators in 1 plans" in text
    assert "unbox stays PyTorch's: torch.export cannot follow Unbox" in text
    assert "inner stays" not in text  # a part of it is a plan


def test_the_source_is_not_changed(detector):
    before = {name: type(module) for name, module in detector.named_modules()}
    optimize(detector, torch.randn(1, 3, 21, 18))
    assert {name: type(module) for name, module in detector.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in detector.modules())


def test_other_sizes_get_plans_of_their_own(detector, monkeypatch):
    monkeypatch.setattr(piecewise, "MOST_PLANS", 3)
    plan = optimize(detector, torch.randn(1, 3, 21, 18))
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        for size in (20, 30, 33, 40, 40):
            x = torch.randn(1, 3, size, size)
            assert_equal(plan(x), detector(x))
    assert len(plan.pieces["backbone"].plans) == 3
    said = [str(w.message) for w in caught if "'backbone'" in str(w.message)]
    assert said == ["PyTorch runs 'backbone' for inputs of new sizes: there are plans for 3 other sizes already."]


def test_changed_weights_are_noticed(detector):
    x = torch.randn(1, 3, 21, 18)
    plan = optimize(detector, x)
    with torch.no_grad():
        detector.levels[1].weight.mul_(2)
    assert plan.changed() == "levels.1.weight"
    with pytest.raises(RuntimeError, match="changed after the plan was made: call refresh"):
        plan(x)
    plan.refresh()
    assert plan.changed() is None
    with torch.no_grad():
        assert_equal(plan(x), detector(x))


def test_copies(detector):
    x = torch.randn(1, 3, 21, 18)
    plan, expected = optimize(detector, x), detector(x)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        with torch.no_grad():
            detector.head.weight.zero_()  # which reaches no copy
            assert_equal(other(x), expected)


def test_no_file_holds_a_model_s_own_code(detector, tmp_path):
    plan = optimize(detector, torch.randn(1, 3, 21, 18))
    with pytest.raises(RuntimeError, match=r"cannot be saved: Detector runs code of its own between backbone, levels"):
        plan.save(tmp_path / "plan")
    assert not list(tmp_path.iterdir())


def test_it_is_inference_alone(detector):
    plan = optimize(detector, torch.randn(1, 3, 21, 18))
    for refused in (plan.train, plan.double, lambda: plan.load_state_dict({})):
        with pytest.raises(RuntimeError, match="source model"):
            refused()
    x = torch.randn(1, 3, 21, 18, requires_grad=True)
    with pytest.raises(RuntimeError, match="requires a gradient"), torch.enable_grad():
        plan.pieces["backbone"](x)


def test_timings_cover_the_call(detector):
    x = torch.randn(1, 3, 21, 18)
    stages = optimize(detector, x).timings(x)
    assert stages[-1].kernels == ("the model's own Python",)
    assert sum(len(stage.problems) for stage in stages) >= 6  # each layer once, the head twice
    assert all(stage.seconds >= 0 for stage in stages)


def test_another_dtype_inside(detector):
    x = torch.randn(1, 3, 21, 18)
    plan = optimize(detector, x, dtype=torch.bfloat16)
    with torch.no_grad():
        for y, e in zip(plan(x).values(), detector(x).values(), strict=True):
            torch.testing.assert_close(y, e, rtol=5e-2, atol=5e-2)
    assert all("bf16" in problem for stage in plan.timings(x) for problem in stage.problems)


def test_a_module_in_two_places_is_one_plan():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if x.sum() != 0 else x

    model, x = Twice().eval(), torch.randn(1, 3, 8, 8)
    plan = optimize(model, x)
    assert list(plan.pieces) == ["a"] and len(plan.pieces["a"].plans) == 1
    with torch.no_grad():
        torch.testing.assert_close(plan(x), model(x), rtol=1e-5, atol=1e-5)


def test_nothing_to_plan_is_said():
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"torch\.export cannot follow Nothing"):
        optimize(Nothing().eval(), torch.ones(1, 3, 8, 8))


def test_a_bad_example_is_said(detector):
    with pytest.raises(CaptureError, match="cannot follow Detector"):
        optimize(detector, torch.randn(1, 5, 21, 18))


class Chosen(nn.Module):
    """Values decide how many rows its last layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = block(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.backbone(x).mean(1).flatten(1)[:, :8]
        return self.head(rows[rows[:, 0] > rows[:, 1]])


def test_layers_whose_sizes_depend_on_values_are_pieces():
    """torch.export follows the whole, but every call might need a plan of its own."""
    torch.manual_seed(0)
    model, x = Chosen().eval(), torch.randn(9, 3, 8, 8)
    torch.export.export(model, (x,))
    plan = optimize(model, x)
    assert set(plan.pieces) == {"backbone", "head"}
    assert "the sizes of a linear in it depend on values" in str(plan)
    for images in (x, x[:5]):
        torch.testing.assert_close(plan(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", quick(["rcnn", "fast_rcnn", "faster_rcnn", "faster_rcnn_vgg"], ["faster_rcnn_vgg"]))
def test_detectors_of_regions(name: str):
    """From pictures to boxes, for any number of pictures of any size."""
    finder = Finder(THIN[name].model().eval(), score=0.0)
    plan = optimize(finder, torch.randn(2, 3, 64, 64))
    assert isinstance(plan, Piecewise)
    for x in (torch.randn(2, 3, 64, 64), torch.randn(3, 3, 64, 64), torch.randn(1, 3, 80, 96)):
        for found, expected in zip(plan(x), finder(x), strict=True):
            assert len(found.boxes) == len(expected.boxes) > 0
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)


def test_a_whole_model_is_one_plan():
    assert isinstance(optimize(block(3, 8).eval(), torch.randn(1, 3, 8, 8)), Optimized)


@pytest.mark.full
def test_torchvision_s_faster_rcnn(monkeypatch):
    from fastconv.functional import boxes

    torchvision = third_party.torchvision()
    monkeypatch.setattr("torchvision.ops.boxes.nms", boxes.nms)
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    one, two = [torch.rand(3, 240, 320)], [torch.rand(3, 200, 300), torch.rand(3, 240, 320)]
    plan = optimize(model.eval(), (one,))
    assert {"backbone", "rpn.head", "roi_heads.box_head"} <= set(plan.pieces)
    with torch.no_grad():
        for images in (one, two):
            for found, expected in zip(plan(images), model(images), strict=True):
                assert found["labels"].tolist() == expected["labels"].tolist()
                torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-2)
                torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
