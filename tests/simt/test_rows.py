"""CUDA's rows of the list: which tensors they serve, in a build with and without device code, on GPUs of several kinds.
The GPUs are invented; what the kernels compute is the emulator's to tell.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fastconv
from fastconv import dispatch, registry
from fastconv._native import C
from fastconv.kernels import cuda
from fastconv.problem import Problem
from fastconv.testing import emulator

DENSE = Problem("n2c32h9w8_k48r3s2_p1_f16nhwc")
KERNEL = "conv2d/fprop_igemm_sm80"


def pretend(monkeypatch, held: list[str], capabilities: list[tuple[int, int]], reason: str = "") -> None:
    """A build that holds code for ``held`` on a machine with such GPUs."""
    code = SimpleNamespace(gpu_device_code=lambda: (held, reason), gpu_refuses=C.gpu_refuses)
    monkeypatch.setattr(cuda, "C", code)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Chip {i}")


def refusal(name: str = KERNEL, problem: Problem = DENSE) -> str | None:
    return registry.kernel(name).refuses(problem)


def test_every_kernel_of_the_extension_is_a_row_of_the_list():
    rows = [kernel for kernel in registry.kernels() if kernel.gpu is not None]
    assert [row.name for row in rows] == [row["name"] for row in C.gpu_kernels()]
    assert [row.gpu for row in rows] == list(range(len(rows)))
    assert all(row.devices == ("cuda",) and row.native is None and row.deterministic for row in rows)
    assert {row.name for row in rows} == {row.name for row in emulator.rows()}


def test_a_build_without_device_code_says_why(monkeypatch):
    pretend(monkeypatch, [], [(9, 0)], "nvcc was not found when it was built")
    assert refusal() == "This build has no device code: nvcc was not found when it was built."
    assert cuda.device_code() == "none: nvcc was not found when it was built"


def test_a_kernels_own_refusal_comes_first(monkeypatch):
    pretend(monkeypatch, [], [])
    assert "drop 13 of 23 mantissa bits" in refusal(problem=DENSE.replace(dtype="f32"))


def test_without_a_gpu_nothing_is_served(monkeypatch):
    pretend(monkeypatch, ["80", "90a"], [])
    assert refusal() == "PyTorch sees no GPU here."


@pytest.mark.parametrize(
    ("held", "capabilities", "part"),
    [
        (["80", "90a"], [(9, 0)], None),
        (["80"], [(8, 0)], None),
        (["80"], [(8, 9), (12, 0)], None),
        (["90a"], [(9, 0), (9, 0)], None),
        (["80"], [(7, 5)], "device code is for sm_80, but GPU 0, Chip 0, is sm_75"),
        (["90a"], [(10, 0)], "device code is for sm_90a, but GPU 0, Chip 0, is sm_100"),
        (["90a", "100a"], [(9, 0), (8, 0)], "device code is for sm_90a, sm_100a, but GPU 1, Chip 1, is sm_80"),
    ],
)
def test_device_code_and_gpu_must_fit(monkeypatch, held, capabilities, part):
    pretend(monkeypatch, held, capabilities)
    found = refusal()
    assert found is None if part is None else part in found


@pytest.mark.parametrize(
    ("held", "capability", "part"),
    [
        (["90a"], (9, 0), None),
        (["80"], (9, 0), "needs device code for sm_90a, but this build's is for sm_80"),
        (["80", "90a"], (10, 0), "made for sm_90a, but GPU 0, Chip 0, is sm_100"),
    ],
)
def test_targets_with_features_of_one_architecture_run_there_alone(monkeypatch, held, capability, part):
    pretend(monkeypatch, held, [capability])
    found = cuda.refuses_machine("sm90a")
    assert found is None if part is None else part in found


def test_pytorchs_rows_come_first_and_a_pattern_asks_for_ours(monkeypatch):
    pretend(monkeypatch, ["90a"], [(9, 0)])
    dispatch.forget()
    assert dispatch.plan(DENSE, "cuda").name == "conv2d/fprop_aten"
    with fastconv.config(kernel="*_sm80", strict=True):
        assert dispatch.plan(DENSE, "cuda").name == KERNEL
        (choice,) = fastconv.explain(DENSE, device="cuda").choices
        assert "of workspace" in str(choice)
        with pytest.raises(RuntimeError, match="No kernel accepts"):
            dispatch.plan(DENSE, "cpu")
    with fastconv.config(kernel="*_simt,*_sm80"):
        assert dispatch.plan(DENSE.replace(dtype="f32"), "cuda").name == "conv2d/fprop_igemm_simt"
        assert dispatch.plan(DENSE.replace(dtype="f64"), "cuda").name == "conv2d/fprop_aten"


def test_what_explain_says_of_workspace_is_the_kernels_own(monkeypatch):
    pretend(monkeypatch, ["90a"], [(9, 0)])
    wgrad = DENSE.replace(pass_="wgrad")
    (choice,) = fastconv.explain(wgrad, device="cuda").choices
    (line,) = [line for line in choice.lines if line.kernel == "conv2d/wgrad_igemm_sm80"]
    assert line.workspace == C.gpu_workspace(registry.kernel(line.kernel).gpu, wgrad) > 0


def test_tensors_elsewhere_are_an_error():
    x, w = torch.zeros(2, 32, 9, 8, dtype=torch.float16), torch.zeros(48, 32, 3, 2, dtype=torch.float16)
    message = "no device code" if not C.gpu_device_code()[0] else "takes tensors of one CUDA device, but one is on cpu"
    with pytest.raises(RuntimeError, match=message):
        registry.kernel(KERNEL).run(DENSE, x=x, w=w)


def test_the_list_of_a_gpu_needs_no_driver_on_the_cpu(monkeypatch):
    """A problem on the CPU never asks about GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked about a GPU"))
    dispatch.forget()
    assert dispatch.plan(DENSE, "cpu").devices == ("cpu",)
