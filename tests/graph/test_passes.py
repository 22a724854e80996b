"""Each pass keeps what a graph computes, and does what it is there for."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from fastconv.graph import operators, optimize, passes, translate
from fastconv.graph.capture import capture
from fastconv.graph.network import Network
from fastconv.graph.passes import absorb_padding, fold_batch_norm, fuse_epilogue, merge_concats, tidy
from tests.graph import networks

aten = torch.ops.aten


def captured(name: str) -> tuple[Network, torch.Tensor, object]:
    model, x = networks.make(name)
    graph = capture(model, ((x,), {}))
    translate.translate(graph.graph)
    return Network(graph.graph, graph.tensors), x, model(x)


def outputs(network: Network, x: torch.Tensor) -> list[torch.Tensor]:
    return pytree.tree_leaves(network.run(x))


@pytest.mark.parametrize("name", networks.ALL)
def test_no_pass_changes_what_a_graph_computes(name):
    network, x, expected = captured(name)
    expected = pytree.tree_leaves(expected)
    for each in (None, *passes.PASSES):
        if each is not None:
            each.run(network)
            network.graph.lint()
        for y, e in zip(outputs(network, x), expected, strict=True):
            torch.testing.assert_close(y, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", networks.PLANNED)
def test_every_operator_that_a_plan_knows_is_translated(name):
    network, _, _ = captured(name)
    left = {str(n.target) for n in network.graph.nodes if n.op == "call_function" and "aten" in str(n.target)}
    assert left <= {"aten.sym_size.int"}


def calls(network: Network) -> list[str]:
    return [node.target.__name__ for node in network.graph.nodes if node.op == "call_function"]


def test_batch_norms_are_folded_into_the_convolution_that_only_they_read():
    network, _, _ = captured("residual")
    fold_batch_norm.run(network)
    assert "batch_norm" not in calls(network) and "affine" not in calls(network)
    convolutions = network.calls(operators.conv2d)
    assert len(convolutions) == 4 and all(node.args[2] is not None for node in convolutions)


def test_a_batch_norm_behind_a_concatenation_becomes_an_affine_map():
    network, _, _ = captured("dense")
    fold_batch_norm.run(network)
    assert calls(network).count("affine") == 4


def test_a_batch_norm_is_not_folded_into_a_convolution_that_somebody_else_reads():
    class Shared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    model = networks.settle(Shared()).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    graph = capture(model, ((x,), {}))
    translate.translate(graph.graph)
    network = Network(graph.graph, graph.tensors)
    passes.run(network)
    assert sorted(calls(network)) == ["affine", "conv2d"]  # the sum is the affine map's residual
    torch.testing.assert_close(outputs(network, x)[0], model(x))


def test_epilogues_are_fused_and_of_two_producers_the_later_takes_the_other():
    network, _, _ = captured("residual")
    passes.run(network)
    residual = [node for node in network.calls(operators.conv2d) if len(node.args) > 3 and node.args[3] is not None]
    assert len(residual) == 1 and residual[0].kwargs["activation"] == "relu"
    assert residual[0].args[3].target is operators.conv2d
    # The second block activates before it adds: its sum is a step of its own.
    assert calls(network).count("map2d") == 1


def test_explicit_padding_goes_into_the_convolution():
    network, _, _ = captured("upsampled")
    absorb_padding.run(network)
    assert "pad" not in calls(network)
    assert network.calls(operators.conv2d)[0].kwargs["padding"] == ((0, 1), (1, 2))


def test_concatenations_in_concatenations_are_opened():
    class Nested(torch.nn.Module):
        def forward(self, x):
            y = torch.cat([x, x + 1], 1)
            return torch.cat([torch.cat([y, x], 1), y], 1)

    x = torch.randn(2, 3, 4, 5)
    graph = capture(Nested().eval(), ((x,), {}))
    translate.translate(graph.graph)
    network = Network(graph.graph, graph.tensors)
    merge_concats.run(network)
    assert calls(network).count("cat") == 1
    torch.testing.assert_close(outputs(network, x)[0], Nested()(x))


def test_equal_work_is_done_once():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(x) * 2, self.conv(x)

    x = torch.randn(2, 3, 4, 5)
    graph = capture(Twice().eval(), ((x,), {}))
    translate.translate(graph.graph)
    network = Network(graph.graph, graph.tensors)
    assert calls(network).count("conv2d") == 2
    tidy.run(network)
    assert calls(network).count("conv2d") == 1


def test_fusing_needs_a_result_that_nobody_else_reads():
    class Branch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            return torch.relu(y), y

    x = torch.randn(2, 3, 4, 5)
    graph = capture(Branch().eval(), ((x,), {}))
    translate.translate(graph.graph)
    network = Network(graph.graph, graph.tensors)
    fuse_epilogue.run(network)
    assert calls(network) == ["conv2d", "map2d"]


class FeaturesLast(torch.nn.Module):
    """Two linear layers on N H W C with an activation between, as in a Swin transformer."""

    def __init__(self):
        super().__init__()
        self.maps, self.wide, self.narrow = torch.nn.Conv2d(3, 4, 2), torch.nn.Linear(4, 12), torch.nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.maps(x).permute(0, 2, 3, 1)
        return y + self.narrow(torch.nn.functional.gelu(self.wide(y)))


def test_linear_layers_on_four_axes_are_fused_with_what_is_between_them():
    model, x = FeaturesLast().double().eval(), torch.randn(2, 3, 5, 7, dtype=torch.double)
    graph = capture(model, ((x,), {}))
    translate.translate(graph.graph)
    network = Network(graph.graph, graph.tensors)
    fuse_epilogue.run(network)
    torch.testing.assert_close(network.run(x)[0], model(x), rtol=1e-12, atol=1e-12)
    first, second = network.calls(operators.linear)
    assert second.args[0] is first and first.kwargs["activation"] == "gelu"
    for n in (2, 5):
        images = torch.randn(n, 3, 5, 7, dtype=torch.double)
        plan = optimize(model, x)
        torch.testing.assert_close(plan(images), model(images), rtol=1e-12, atol=1e-12)
    assert "aten.linear" not in str(plan)
