"""optimize(dtype=...): the plan computes in another dtype behind the model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastconv.graph import load_plan, optimize
from tests.graph import networks
from tests.graph.test_plans import assert_right

ERROR = {torch.float64: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # roundings along a few layers


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("name", networks.PLANNED)
def test_inputs_and_results_keep_the_models_dtype(name, dtype):
    model, x = networks.make(name, torch.float32)
    plan = optimize(model, x, dtype=dtype)
    assert_right(plan, model, x, ERROR[dtype])
    assert {t.dtype for t in plan.network.tensors.values() if t.is_floating_point()} == {dtype}
    assert next(model.parameters()).dtype == torch.float32


def test_it_computes_in_that_dtype():
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x, dtype=torch.bfloat16)
    problems = [text for stage in plan.timings(x) for text in stage.problems]
    assert problems and all("_bf16" in text for text in problems)


def test_any_batch_follows():
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x[:1], dtype=torch.bfloat16)
    x = torch.cat([x, x, x])
    assert_right(plan, model, x, ERROR[torch.bfloat16])


def test_changed_weights_are_noticed_and_taken_up():
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x, dtype=torch.float64)
    with torch.no_grad():
        model.head[-1].bias.add_(1)
    with pytest.raises(RuntimeError, match=r"head\.3\.bias.* changed"):
        plan(x)
    plan.refresh()
    assert_right(plan, model, x, ERROR[torch.float64])


def test_files_keep_the_dtype(tmp_path):
    model, x = networks.make("residual", torch.float32)
    plan = optimize(model, x, dtype=torch.bfloat16)
    plan.save(tmp_path / "plan.safetensors")
    assert torch.equal(load_plan(tmp_path / "plan.safetensors")(x), plan(x))


def test_a_dtype_that_plans_do_not_know():
    with pytest.raises(ValueError, match=r"dtype=torch\.int8 must be one of torch\.float32"):
        optimize(nn.Conv2d(3, 4, 1).eval(), torch.randn(1, 3, 8, 8), dtype=torch.int8)
