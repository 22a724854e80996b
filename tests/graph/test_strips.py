"""Steps that run together in strips give what they give apart, for every height of a strip and number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastconv
from fastconv._native import C
from fastconv.graph import optimize, strips
from fastconv.graph.values import Stage
from fastconv.problem import Problem

# Blocks with all that a strip must get right: windows and strides, dilation, padding on one side, odd sizes and
# channels, residuals, scales of an image, pools, norms, slices of a concatenation.


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(12, 40, 1),
            nn.ReLU6(),
            nn.Conv2d(40, 40, 5, padding=2, groups=40),
            nn.SiLU(),
            nn.Conv2d(40, 12, 1),
        )

    def forward(self, x):
        return x + self.body(x)


class Scaled(nn.Module):
    """What a squeeze-and-excitation block ends with."""

    def __init__(self):
        super().__init__()
        self.scale, self.project = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 8, 1)

    def forward(self, x):
        return self.project(x * torch.sigmoid(self.scale(x.mean((2, 3), keepdim=True))))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 20, 3, padding=1), nn.ReLU())
        self.right = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 8, 1), nn.ReLU())

    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], 1).sigmoid()


BLOCKS = {
    "inverted": (lambda: nn.Sequential(
        nn.Conv2d(10, 33, 1), nn.ReLU6(), nn.Conv2d(33, 33, 3, 2, 1, groups=33), nn.ReLU6(), nn.Conv2d(33, 10, 1)),
        (10, 17, 19)),
    "residual": (Residual, (12, 13, 11)),
    "scaled": (Scaled, (24, 9, 7)),
    "branches": (Branches, (8, 11, 12)),
    "dilated": (lambda: nn.Sequential(
        nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 3, dilation=3, groups=32), nn.Hardswish()),
        (8, 15, 10)),
    "lopsided": (lambda: nn.Sequential(
        nn.Conv2d(8, 32, 1), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(32, 32, 3, 2, groups=32), nn.ReLU()),
        (8, 14, 14)),
    "stem": (lambda: nn.Sequential(nn.Conv2d(3, 20, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)), (3, 37, 30)),
    "gaps": (lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1, stride=3)), (8, 17, 17)),
    "norm": (lambda: nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 1)), (16, 10, 9)),
}  # fmt: skip


def block(name: str, batch: int) -> tuple[nn.Module, torch.Tensor]:
    make, size = BLOCKS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    return model, torch.randn(batch, *size).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def threads():
    """Sets the number of threads, for kernels whose choice does not depend on it."""
    before = torch.get_num_threads()
    with fastconv.config(deterministic=True):
        yield torch.set_num_threads
    torch.set_num_threads(before)


def apart(monkeypatch) -> None:
    monkeypatch.setattr(strips, "_pays", lambda *_: False)


def joined(monkeypatch, height: int | None = None) -> None:
    """Joins all that can be, in strips of a height (None: as many rows as L2 holds)."""
    monkeypatch.setattr(strips, "_pays", lambda *_: True)
    if height is None:
        return

    def fixed(steps, threads):
        try:
            C.strip_bytes([step.kernel_and_problem for step in steps], height)
        except ValueError:
            return 0
        return height

    monkeypatch.setattr(strips, "_height", fixed)


def stages(plan, x) -> list[Stage]:
    return [stage for unit in plan.units for stage in unit.lower([x]).stages]


@pytest.mark.parametrize("name", BLOCKS)
def test_strips_change_no_bit(name, monkeypatch, threads):
    model, x = block(name, 3)
    with monkeypatch.context() as patch:
        apart(patch)
        expected = optimize(model, x)(x)
    for height in (None, 1, 2, 3, 4, 7, 16):
        with monkeypatch.context() as patch:
            joined(patch, height)
            plan = optimize(model, x)
            assert any(stage.height for stage in stages(plan, x))
            for count in (1, 2, 3, 5):
                threads(count)
                assert torch.equal(plan(x), expected), (height, count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_strips_of_other_dtypes(dtype, monkeypatch):
    model, x = block("inverted", 2)
    model, x = model.to(dtype), x.to(dtype)
    with monkeypatch.context() as patch:
        apart(patch)
        expected = optimize(model, x)(x)
    joined(monkeypatch, 2)
    plan = optimize(model, x)
    assert any(stage.height for stage in stages(plan, x))
    assert torch.equal(plan(x), expected)


def test_source_rows_end_with_the_map():
    window = Problem("n1c32h12w8_k32r3s3_p1_g32_f32nhwc")
    assert [C.source_rows(window, first, first + 4) for first in range(0, 12, 4)] == [(0, 5), (3, 9), (7, 12)]


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        ("n4c8h9w7_k8r3s3_p1_f32nhwc", (0, 2), "n1c8h3w7_k8r3s3_p1:0x1_f32nhwc"),
        ("n4c8h9w7_k8r3s3_p1_f32nhwc", (3, 5), "n1c8h4w7_k8r3s3_p0x1_f32nhwc"),
        ("n4c8h9w7_k8r3s3_p1_f32nhwc", (7, 9), "n1c8h3w7_k8r3s3_p0:1x1_f32nhwc"),
        ("n4c8h9w7_k8r3s3_p1_f32nhwc", (0, 9), "n1c8h9w7_k8r3s3_p1_f32nhwc"),
        ("n4c8h9w7_k8r5s5_u2_p2_f32nhwc", (1, 3), "n1c8h7w7_k8r5s5_u2_p0x2_f32nhwc"),
        ("n4c8h9w7_k8r3s3_p2_d2_f32nhwc", (1, 3), "n1c8h5w7_k8r3s3_p1:0x2_d2_f32nhwc"),
        ("map2d_n4c8h9w7_f32nhwc_scale_relu", (2, 6), "map2d_n1c8h4w7_f32nhwc_scale_relu"),
    ],
)
def test_rows_of_a_problem(text, rows, expected):
    assert C.of_rows(Problem(text), *rows) == Problem(expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("n1c8h9w7_k8r3s3_p1_f32nchw", "nchw"),
        ("n1c8h9w7_k8r3s3_p1_f32nhwc_dgrad", "forward pass"),
        ("batchnorm2d_n1c8h9w7_f32nhwc_train", "forward pass"),
        ("adaptiveavg2d_n1c8h9w7_o3x3_f32nhwc", "adaptiveavg2d"),
        ("maxpool2d_n1c8h9w7_r3s3_u2_p1_f32nhwc_indexu8", "indices"),
        ("n1c8h9w7_k8r1s1_p1_f32nhwc", "padding alone"),
    ],
)
def test_what_is_not_cut_into_rows(text, sentence):
    assert sentence in C.refuses_rows(Problem(text))


def test_a_kernel_that_refuses_a_strip_is_named():
    row = next(i for i, row in enumerate(C.kernels()) if "fprop_winograd" in row["name"])
    with pytest.raises(ValueError, match=r"winograd.* does not run"):
        C.strip_bytes([(row, Problem("n1c64h16w16_k64r5s5_p2_f32nhwc"))] * 2, 4)


def test_what_somebody_else_reads_stays_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 8, 1)

        def forward(self, x):
            y = self.first(x).relu()
            return self.second(y), y

    model, x = Twice().eval(), torch.randn(1, 8, 40, 40)
    plan = optimize(model, x)
    assert not any(stage.height for stage in stages(plan, x))
    for y, expected in zip(plan(x), model(x), strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_winograd_and_large_filters_stay_apart():
    model = nn.Sequential(nn.Conv2d(64, 128, 1), nn.ReLU(), nn.Conv2d(128, 64, 3, padding=1)).eval()
    x = torch.randn(1, 64, 56, 56)
    plan = optimize(model, x)
    names = [[step.selection.kernel.name for step in stage.steps] for stage in stages(plan, x)]
    assert any("winograd" in name for [*stage] in names for name in stage)
    assert all(len(stage) == 1 for stage in names if any("winograd" in name for name in stage))


def test_strips_need_less_memory(monkeypatch):
    model = nn.Sequential(
        nn.Conv2d(16, 96, 1), nn.ReLU6(), nn.Conv2d(96, 96, 3, 2, 1, groups=96), nn.ReLU6(), nn.Conv2d(96, 24, 1)
    ).eval()
    x = torch.randn(4, 16, 112, 112)
    sizes = {}
    for pays in (False, True):
        monkeypatch.setattr(strips, "_pays", lambda *_, pays=pays: pays)
        sizes[pays] = optimize(model, x).units[0].lower([x]).arena_bytes
    assert sizes[True] < sizes[False] / 2
