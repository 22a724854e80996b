"""explain shows what dispatch decides: every kernel, its sentence, the chosen one, its costs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastconv
from fastconv import dispatch
from fastconv._native import C
from fastconv.problem import Problem

TEXT = "n2c3h9w8_k4r3s2_p1_f32nhwc"
X = torch.randn(2, 3, 9, 8)


@pytest.mark.parametrize("subject", [TEXT, fastconv.Problem(TEXT), TEXT + "_dgrad", TEXT + "_wgrad"], ids=str)
@pytest.mark.parametrize("kernel", ["*", "-*aten"])
def test_every_kernel_of_dispatch_is_shown(subject, kernel):
    with fastconv.config(kernel=kernel):
        (choice,) = fastconv.explain(subject).choices
        candidates = dispatch.candidates(choice.problem)
        assert [(line.kernel, line.reason) for line in choice.lines] == [(c.kernel.name, c.reason) for c in candidates]
        assert choice.chosen == dispatch.plan(choice.problem).name
    shown = str(choice)
    for line in choice.lines:
        assert line.kernel in shown
        assert line.reason is None or line.reason in shown


def test_workspace_is_the_kernels_own():
    problem = fastconv.Problem(TEXT)
    (choice,) = fastconv.explain(problem).choices
    for line, candidate in zip(choice.lines, dispatch.candidates(problem), strict=True):
        native, refused = candidate.kernel.native, candidate.kernel.refuses(problem)
        if native is None or refused:
            assert line.workspace is None
        else:
            assert line.workspace == C.workspace(native, problem, torch.get_num_threads())


def test_layout_copies_and_determinism():
    x_bytes = 2 * 3 * 9 * 8 * 4
    assert f"copied first, {x_bytes / 1000:.3g} kB." in str(fastconv.explain(TEXT))
    layer = nn.Conv2d(3, 4, 3)
    assert "nothing was copied" in str(fastconv.explain(layer, X))
    crooked = X.to(memory_format=torch.channels_last)[:, :, ::2]
    assert "were copied" in str(fastconv.explain(layer, crooked))
    with fastconv.config(kernel="conv2d/*_reference_scalar"):
        assert "for any number of threads" in str(fastconv.explain(TEXT))


def test_a_module_is_explained_problem_by_problem_and_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()).train()
    explanation = fastconv.explain(model, X)
    assert [str(c.problem) for c in explanation.choices] == ["n2c3h9w8_k3r3s3_p1_f32nchw_bias"]
    assert "Layers: 0, 1." in str(explanation)
    assert repr(explanation) == str(explanation)
    assert [type(m) for m in model] == [nn.Conv2d, nn.Conv2d, nn.ReLU]
    assert model.training


OUTSIDE = [
    (nn.Conv3d(1, 1, 1), None, "fastconv has no Conv3d; PyTorch's own operator runs."),
    (nn.Conv2d(3, 1, 1, dtype=torch.complex64), X, "Its weight is torch.complex64; PyTorch's own operator runs."),
    (nn.ReLU(), None, "The module has no convolution, pool or norm of ours; PyTorch's own operators run."),
    (nn.Sequential(nn.Conv2d(3, 1, 1), nn.Identity())[1:], None, "no convolution, pool or norm of ours"),
]


@pytest.mark.parametrize(("module", "example", "sentence"), OUTSIDE, ids=["conv3d", "complex", "relu", "empty"])
def test_what_is_outside_is_said(module, example, sentence):
    if module.__class__ is nn.Conv2d:
        example = example.to(torch.complex64)
    explanation = fastconv.explain(module, example)
    assert explanation.choices == ()
    assert sentence in str(explanation)


def test_an_integer_input_runs_on_torch():
    pool = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
    assert "PyTorch's own operator, for torch.int64" in str(fastconv.explain(pool, X.long()))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((3,), TypeError, "explain takes a Problem, its string or a torch.nn.Module, but got 3 of type int"),
        (("n1c3",), ValueError, "Problem string"),
        ((nn.Conv2d(1, 1, 1),), ValueError, "explain needs an example input"),
        ((TEXT, None, "nowhere"), RuntimeError, "nowhere"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastconv.explain(*arguments)


@pytest.mark.parametrize("pass_", ["fprop", "dgrad", "wgrad"])
@pytest.mark.parametrize("shape", ["n1c0h4w4_k3r3s3", "n1c0h1w1_k3r1s1", "n0c3h4w4_k3r3s3", "n1c3h4w4_k0r3s3"])
def test_empty_problems_are_explained(shape, pass_):
    """Sizes, estimates and workspaces of every kernel that accepts one: nothing is divided by a channel."""
    for dtype in ("f32", "bf16"):
        for layout in ("nhwc", "nchw"):
            problem = Problem(f"{shape}_{dtype}{layout}").replace(pass_=pass_)
            assert str(problem) in str(fastconv.explain(problem))
