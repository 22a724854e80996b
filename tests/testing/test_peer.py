"""What is timed as a step of training is that step: it computes the problem, and is what autograd asks for."""

from __future__ import annotations

import pytest
import torch

import fastconv.functional
from fastconv.problem import Problem
from fastconv.profiling import trace
from fastconv.testing import bench, corpus, oracle, peer

PASSES = ("fprop", "dgrad", "wgrad")
LAYERS = (
    "n2c8h7w9_k6r3s2_u2x1_p1x0_d1x2_g2_f32nhwc_bias",
    "n2c5h18w22_k4r2s2_u2_f32nhwc_dgrad_bias",
    "n2c6h18w33_k4r3s5_u2x3_p1x2_g2_f32nhwc_dgrad",
    "maxpool2d_n2c9h7w8_r3s2_u2_p1x0_f32nhwc",
    "maxpool2d_n2c9h7w8_r3s2_u2_p1x0_f32nhwc_ceil",
    "avgpool2d_n2c9h7w8_r3s2_u2_p1x0_f32nhwc_nopad",
    "avgpool2d_n2c9h7w8_r3s2_u1x2_f32nhwc_div5",
    "adaptiveavg2d_n2c9h7w8_o3x2_f32nhwc",
    "adaptiveavg2d_n2c9h7w8_o1x1_f32nhwc",
    "adaptivemax2d_n2c9h7w8_o3x2_f32nhwc",
)


def is_transposed(layer: Problem) -> bool:
    return layer.is_conv and layer.pass_ == "dgrad"


def steps(layer: Problem) -> list[Problem]:
    """The passes of a layer's training."""
    passes = [layer.pass_, *(p for p in PASSES if p != layer.pass_)]
    return [layer, *filter(None, (corpus.backward(layer, p) for p in passes[1:]))]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("text", LAYERS)
def test_both_sides_compute_the_problem(text, layout):
    layer = Problem(text).replace(layout=layout)
    for problem in steps(layer):
        exact = oracle.ask(problem)
        [tensors] = bench.operand_sets(exact.tensors, problem, cold=False)
        for call in peer.training_calls(problem, tensors, is_transposed(layer)):
            result = call()
            assert exact.verdict_of_call(result, tensors, "conv2d/peer_aten") is None, str(problem)


@pytest.mark.parametrize("text", LAYERS)
def test_our_call_asks_for_the_problem_autograd_asks_for(text):
    layer = Problem(text)
    wanted = {str(corpus.trained(problem)) for problem in steps(layer)}
    exact = oracle.ask(layer)
    [tensors] = bench.operand_sets(exact.tensors, layer, cold=False)
    for tensor in tensors.values():
        tensor.requires_grad_()
    forward = peer.transposed if is_transposed(layer) else peer.fprop
    found = set()
    with trace.report(lambda call: found.add(str(call.problem))):
        y = forward(layer, tensors, fastconv.functional)()
        gradients = torch.autograd.grad(y, [t for t in tensors.values() if t.dim() > 1], torch.randn_like(y))
    assert found == wanted
    asked, results = set(), []
    for problem in steps(layer)[1:]:
        [tensors] = bench.operand_sets(oracle.ask(problem).tensors, problem, cold=False)
        with trace.report(lambda call: asked.add(str(call.problem))):
            results.append(peer.own_backward(problem, tensors)())
    assert asked == wanted - {str(corpus.trained(layer))}
    assert {t.stride() for t in results} == {t.stride() for t in gradients}  # in the layout autograd asks for


@pytest.mark.parametrize("text", LAYERS[:3])
def test_torch_is_asked_for_one_gradient_only(text):
    """The other results of ``convolution_backward`` would be work that our side does not do."""
    layer = Problem(text)
    for problem in steps(layer)[1:]:
        [tensors] = bench.operand_sets(oracle.ask(problem).tensors, problem, cold=False)
        result = peer.backward(problem, tensors, is_transposed(layer))()
        assert [t is not None for t in result] == [problem.pass_ != "wgrad", problem.pass_ == "wgrad", False]


@pytest.mark.parametrize(
    "text",
    [
        "n1c8h7w9_k8r3s3_p0:1x1:2_f32nhwc_dgrad",
        "n1c8h7w9_k8r3s3_p1_f32nhwc_dgrad_bias",
        "n1c8h7w9_k8r3s3_p1_f32nhwc_dgrad_res",
        "maxpool2d_n1c9h7w8_r3s2_f32nhwc",
    ],
)
def test_what_takes_more_than_one_call_has_none(text):
    tensors = dict.fromkeys(("x", "y", "w", "bias", "index"), torch.empty(0))
    assert peer.backward(Problem(text), tensors) is None
    assert peer.own_backward(Problem(text), tensors) is None
