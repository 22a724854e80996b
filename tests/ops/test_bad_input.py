"""What torch refuses, we refuse with the same class and a sentence of our own; what it takes, we take."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastconv import config, functional, registry
from tests.ops.cases import CASES


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


X, W, WT = (2, 4, 5, 6), (6, 4, 3, 3), (4, 6, 3, 3)
HUGE = 2**62

# function, shape of the input, shape of the weight, further arguments.
REFUSED = {
    "no_filters": ("conv2d", X, (0, 4, 3, 3), {}),
    "no_height": ("conv2d", (2, 4, 0, 6), (6, 4, 1, 1), {}),
    "no_height_but_padding": ("conv2d", (2, 4, 0, 6), (6, 4, 1, 1), {"padding": 1}),
    "empty_filter": ("conv2d", X, (6, 4, 0, 3), {}),
    "no_output": ("conv2d", (2, 4, 2, 6), W, {}),
    "no_output_of_no_batch": ("conv2d", (0, 4, 2, 6), W, {}),
    "stride_zero": ("conv2d", X, W, {"stride": 0}),
    "stride_zero_of_no_batch": ("conv2d", (0, 4, 5, 6), W, {"stride": 0}),
    "stride_negative": ("conv2d", X, W, {"stride": (1, -1)}),
    "dilation_zero": ("conv2d", X, W, {"dilation": 0}),
    "padding_negative": ("conv2d", X, W, {"padding": -1}),
    "padding_negative_on_one_axis": ("conv2d", X, W, {"padding": (0, -1)}),
    "groups_zero": ("conv2d", X, W, {"groups": 0}),
    "groups_negative": ("conv2d", X, W, {"groups": -1}),
    "groups_and_input_channels": ("conv2d", X, W, {"groups": 2}),
    "groups_and_filters": ("conv2d", X, (3, 2, 3, 3), {"groups": 2}),
    "input_channels": ("conv2d", X, (6, 3, 3, 3), {}),
    "input_rank_5": ("conv2d", (*X, 1), W, {}),
    "input_rank_2": ("conv2d", (2, 4), W, {}),
    "weight_rank_3": ("conv2d", X, (6, 4, 3), {}),
    "weight_rank_5": ("conv2d", X, (6, 4, 3, 3, 3), {}),
    "bias_length": ("conv2d", X, W, {"bias": zeros(5)}),
    "bias_rank": ("conv2d", X, W, {"bias": zeros(6, 1)}),
    "bias_scalar": ("conv2d", X, W, {"bias": torch.tensor(1.0)}),
    "bias_dtype": ("conv2d", X, W, {"bias": zeros(6, dtype=torch.float64)}),
    "stride_of_3": ("conv2d", X, W, {"stride": [1, 1, 1]}),
    "stride_of_0": ("conv2d", X, W, {"stride": []}),
    "padding_of_3": ("conv2d", X, W, {"padding": (1, 1, 1)}),
    "padding_of_4": ("conv2d", X, W, {"padding": (1, 1, 1, 1)}),
    "stride_float": ("conv2d", X, W, {"stride": 1.5}),
    "stride_text": ("conv2d", X, W, {"stride": "a"}),
    "stride_none": ("conv2d", X, W, {"stride": None}),
    "stride_bool": ("conv2d", X, W, {"stride": True}),
    "groups_float": ("conv2d", X, W, {"groups": 1.0}),
    "padding_unknown": ("conv2d", X, W, {"padding": "foo"}),
    "same_strided": ("conv2d", X, W, {"padding": "same", "stride": 2}),
    "same_strided_on_one_axis": ("conv2d", X, W, {"padding": "same", "stride": (1, 2)}),
    "padding_beyond_memory": ("conv2d", X, W, {"padding": HUGE}),
    "padding_2_31": ("conv2d", X, W, {"padding": 2**31}),
    "dilation_huge": ("conv2d", X, W, {"dilation": HUGE}),
    "padding_2_63": ("conv2d", X, W, {"padding": 2**63 - 1}),
    "output_overflows": ("conv2d", X, W, {"padding": 2**33}),
    "groups_2_63": ("conv2d", X, W, {"groups": 2**63 - 1}),
    "padding_beyond_64_bits": ("conv2d", X, W, {"padding": 2**64}),
    "sequence_rank": ("conv1d", (2, 4, 5, 5), (6, 4, 3), {}),
    "sequence_weight_rank": ("conv1d", (2, 4, 5), W, {}),
    "sequence_stride_of_2": ("conv1d", (2, 4, 5), (6, 4, 3), {"stride": (1, 1)}),
    "sequence_no_output": ("conv1d", (2, 4, 0), (6, 4, 3), {}),
    "sequence_padding_huge": ("conv1d", (2, 4, 5), (6, 4, 3), {"padding": HUGE}),
    "transposed_no_channels": ("conv_transpose2d", (2, 0, 5, 6), (0, 6, 3, 3), {}),
    "transposed_no_outputs": ("conv_transpose2d", X, (4, 0, 3, 3), {}),
    "transposed_no_height": ("conv_transpose2d", (2, 4, 0, 6), WT, {}),
    "transposed_empty_filter": ("conv_transpose2d", X, (4, 6, 0, 3), {}),
    "transposed_channels": ("conv_transpose2d", X, (3, 6, 3, 3), {}),
    "transposed_groups": ("conv_transpose2d", X, WT, {"groups": 3}),
    "transposed_bias": ("conv_transpose2d", X, WT, {"bias": zeros(4)}),
    "transposed_output_padding": ("conv_transpose2d", X, WT, {"output_padding": 1}),
    "transposed_output_padding_is_dilation": ("conv_transpose2d", X, WT, {"output_padding": 2, "dilation": 2}),
    "transposed_output_padding_per_axis": (
        "conv_transpose2d",
        X,
        WT,
        {"output_padding": (2, 0), "dilation": (1, 3), "stride": (1, 3)},
    ),
    "transposed_output_padding_negative": ("conv_transpose2d", X, WT, {"output_padding": -1, "stride": 2}),
    "transposed_padding_negative": ("conv_transpose2d", X, WT, {"padding": -1}),
    "transposed_padding_too_much": ("conv_transpose2d", X, WT, {"padding": 9}),
    "transposed_no_output": ("conv_transpose2d", (2, 4, 1, 1), (4, 6, 1, 1), {"padding": 1}),
    "transposed_same": ("conv_transpose2d", X, WT, {"padding": "same"}),
    "transposed_stride_zero": ("conv_transpose2d", X, WT, {"stride": 0}),
    "transposed_stride_huge": ("conv_transpose2d", X, WT, {"stride": HUGE}),
    "transposed_dilation_huge": ("conv_transpose2d", X, WT, {"dilation": HUGE}),
    "transposed_dilation_zero": ("conv_transpose2d", X, WT, {"dilation": 0}),
    "transposed_padding_huge": ("conv_transpose2d", X, WT, {"padding": HUGE}),
    "transposed_padding_2_63": ("conv_transpose2d", X, WT, {"padding": 2**63 - 1}),
    "transposed_stride_2_63": ("conv_transpose2d", X, WT, {"stride": 2**63 - 1}),
    "transposed_dilation_2_63": ("conv_transpose2d", X, WT, {"dilation": 2**63 - 1}),
    "transposed_output_padding_2_63": ("conv_transpose2d", X, WT, {"output_padding": 2**63 - 1}),
    "transposed_output_overflows": ("conv_transpose2d", X, WT, {"stride": 2**40}),
    "transposed_rank": ("conv_transpose2d", (2, 4), WT, {}),
    "transposed_weight_rank": ("conv_transpose2d", X, (4, 6, 3), {}),
    "transposed_sequence_rank": ("conv_transpose1d", X, (4, 6, 3), {}),
    "transposed_sequence_output_padding": ("conv_transpose1d", (2, 4, 5), (4, 6, 3), {"output_padding": 1}),
}
# torch 2.13 ends these in a fault of its own (float division by zero ...); we refuse them with RuntimeError.
CRASHES_TORCH = {
    "transposed_stride_zero",
    "transposed_stride_huge",
    "transposed_stride_2_63",
    "transposed_dilation_huge",
    "transposed_dilation_2_63",  # overflows to a positive size, and computes
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refuses_with_torchs_class_and_a_sentence(case):
    name, x, weight, options = REFUSED[case]
    operands = zeros(*x), zeros(*weight)
    expected: type[Exception] = RuntimeError
    if case not in CRASHES_TORCH:
        with pytest.raises(Exception) as theirs:  # noqa: PT011
            getattr(torch.nn.functional, name)(*operands, **options)
        expected = theirs.type
    with pytest.raises(expected) as ours:
        getattr(functional, name)(*operands, **options)
    assert ours.type in (expected, RuntimeError)
    assert "out of memory" not in str(ours.value) and "allocate" not in str(ours.value)


@pytest.mark.parametrize("case", ["no_output", "input_channels", "groups_and_input_channels"])
def test_refuses_shapes_without_values(case):
    """In the words that values would get; a network on the meta device tells so what it cannot take."""
    name, x, weight, options = REFUSED[case]
    sentences = []
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError) as caught:
            getattr(functional, name)(zeros(*x, device=device), zeros(*weight, device=device), **options)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
@pytest.mark.parametrize("wrong", ["none", "list", "text", "weight_none", "bias_list"])
def test_refuses_what_is_no_tensor(name, wrong):
    x, weight = (zeros(2, 4, 5), zeros(4, 4, 3)) if name.endswith("1d") else (zeros(*X), zeros(4, 4, 3, 3))
    arguments = {
        "none": (None, weight),
        "list": ([1.0], weight),
        "text": ("x", weight),
        "weight_none": (x, None),
        "bias_list": (x, weight, [1.0]),
    }[wrong]
    for module in (torch.nn.functional, functional):
        with pytest.raises(TypeError):
            getattr(module, name)(*arguments)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.float32, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.int32, torch.float32),
        (torch.float32, torch.int64),
        (torch.complex64, torch.float32),
        (torch.float32, torch.complex64),
        (torch.bool, torch.float32),
    ],
    ids=str,
)
def test_refuses_mixed_dtypes(name, a, b):
    for module in (torch.nn.functional, functional):
        with pytest.raises(RuntimeError):
            getattr(module, name)(zeros(2, 4, 5, 6, dtype=a), zeros(4, 4, 3, 3, dtype=b))


@pytest.mark.parametrize(
    ("name", "x", "weight"),
    [
        ("conv2d", (0, 4, 5, 6), W),
        ("conv2d", (0, 4, 5, 6), (4, 4, 1, 1)),
        ("conv2d", (2, 0, 5, 6), (6, 0, 3, 3)),
        ("conv2d", (0, 0, 5, 6), (6, 0, 3, 3)),
        ("conv2d", (0, 5, 6), (6, 0, 3, 3)),
        ("conv1d", (0, 4, 5), (6, 4, 3)),
        ("conv1d", (2, 0, 5), (6, 0, 3)),
        ("conv_transpose2d", (0, 4, 5, 6), WT),
        ("conv_transpose1d", (0, 4, 5), (4, 6, 3)),
    ],
)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_empty_input_gives_torchs_result_and_zero_gradients(name, x, weight, format):
    def results(module):
        a, b = zeros(*x), torch.ones(weight)
        if len(x) == 4:
            a, b = (t.contiguous(memory_format=format) for t in (a, b))
        outputs = weight[0] if "transpose" not in name else weight[1]
        leaves = [t.requires_grad_() for t in (a, b, torch.ones(outputs))]
        y = getattr(module, name)(*leaves)
        y.sum().backward()
        return y, *(leaf.grad for leaf in leaves)

    for ours, theirs in zip(results(functional), results(torch.nn.functional), strict=True):
        assert ours.shape == theirs.shape and ours.stride() == theirs.stride() and ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.complex64, torch.complex128], ids=str)
def test_other_dtypes_equal_torch_bit_by_bit(case, dtype):
    torch.manual_seed(0)
    tensors = [
        (torch.randn(s, dtype=torch.complex128) * 4).to(dtype) if dtype.is_complex else torch.randint(0, 5, s).to(dtype)
        for s in (case.x, case.weight, (case.outputs,))
    ]

    def results(function):
        try:
            leaves = [t.clone().requires_grad_(dtype.is_complex) for t in tensors]
            y = function(*leaves)
            if dtype.is_complex:
                return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y) * 1j)]
            return [y]
        except (RuntimeError, NotImplementedError) as error:
            return [type(error)]

    for ours, theirs in zip(results(case.ours), results(case.theirs), strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(ours, theirs)
        else:
            assert ours is theirs


@pytest.mark.parametrize("name", ["conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
@pytest.mark.parametrize("kind", ["sparse", "quantized", "bool"])
def test_other_tensors_raise_or_equal_torch(name, kind):
    x, weight = (
        (torch.rand(2, 4, 5), torch.rand(4, 4, 3)) if name.endswith("1d") else (torch.rand(X), torch.rand(4, 4, 3, 3))
    )
    x = {
        "sparse": lambda: x.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
        "bool": lambda: x > 0.5,
    }[kind]()
    weight = weight > 0.5 if kind == "bool" else weight
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        getattr(torch.nn.functional, name)(x, weight)
    with pytest.raises(theirs.type):
        getattr(functional, name)(x, weight)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("which", ["weight", "bias"])
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_other_weights_and_biases_raise_as_torchs(name, which, kind):
    """A dense input does not hide a weight or bias that no kernel can read."""
    operands = {"input": torch.rand(X), "weight": torch.rand(4, 4, 3, 3), "bias": torch.rand(4)}
    change = torch.Tensor.to_sparse if kind == "sparse" else partial(torch.quantize_per_tensor, scale=0.1, zero_point=0,
                                                                     dtype=torch.qint8)  # fmt: skip
    operands[which] = change(operands[which])
    with pytest.raises((RuntimeError, NotImplementedError)) as theirs:
        getattr(torch.nn.functional, name)(**operands)
    with pytest.raises(theirs.type):
        getattr(functional, name)(**operands)


# 1x1 filters have no second tap: their dilation reaches nowhere, and one output needs no second stride.
@pytest.mark.parametrize("options", [{"stride": HUGE}, {"stride": 2**31}, {"dilation": HUGE}, {"dilation": 2**31}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_steps_that_are_never_taken(options, groups, format):
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=format).requires_grad_()
    weight = torch.randn(4, 4 // groups, 1, 1, dtype=torch.float64, requires_grad=True)
    taken = x[:, :, :1, :1] if "stride" in options else x
    for row in (k for k in registry.kernels() if k.op == "conv2d" and k.pass_ == "fprop" and k.native is not None):
        with config(kernel=f"{row.name},*wgrad*,*dgrad*,-*_aten"):
            ours = functional.conv2d(x, weight, groups=groups, **options)
            theirs = torch.nn.functional.conv2d(taken, weight, groups=groups)
            torch.testing.assert_close(ours, theirs)
            for a, b in zip(*(torch.autograd.grad(y.sum(), (x, weight)) for y in (ours, theirs)), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lazy_negation_conjugation_and_zero_tensors(case):
    x, weight, bias = case.tensors(requires_grad=False)
    negative = torch._neg_view(x)
    assert negative.is_neg()
    torch.testing.assert_close(case.ours(negative, weight, bias), case.theirs(-x, weight, bias))
    z = torch.complex(x, x + 1)
    imaginary = z.conj().imag
    assert imaginary.is_neg()
    torch.testing.assert_close(case.ours(imaginary, weight, bias), case.theirs(imaginary.clone(), weight, bias))
    filter = torch.complex(weight, weight).conj()
    torch.testing.assert_close(case.ours(z.conj(), filter), case.theirs(z.conj(), filter))
    negated = [torch._neg_view(t) for t in (weight, bias)]
    torch.testing.assert_close(case.ours(x, *negated), case.theirs(x, -weight, -bias))
    nothing = torch._efficientzerotensor(x.shape, dtype=x.dtype)
    torch.testing.assert_close(case.ours(nothing, weight, bias), case.theirs(torch.zeros_like(x), weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_not_finite_input_spreads_as_in_torch(dtype):
    x = torch.zeros(1, 2, 6, 7, dtype=dtype)
    x[0, 0, 2, 3], x[0, 1, 5, 0] = float("nan"), float("inf")
    weight = torch.ones(3, 2, 3, 2, dtype=dtype)
    ours, theirs = functional.conv2d(x, weight), torch.nn.functional.conv2d(x, weight)
    assert torch.equal(ours.isnan(), theirs.isnan()) and torch.equal(ours.isinf(), theirs.isinf())


def test_meta_tensors():
    y = functional.conv2d(zeros(*X, device="meta"), zeros(*W, device="meta"))
    assert y.device.type == "meta" and y.shape == (2, 6, 3, 4)


def test_conv3d_is_torchs_own():
    assert functional.conv3d is torch.nn.functional.conv3d


@pytest.mark.parametrize("wrong", [{"activation": "tanh"}, {"residual": zeros(2, 6, 3, 3)}, {"padding": (1, 1, 1)}])
def test_the_fused_operator_refuses(wrong):
    with pytest.raises(RuntimeError):
        functional.conv2d_act(zeros(*X), zeros(*W), **wrong)


def test_padding_per_side():
    torch.manual_seed(0)
    x, weight = torch.randn(X, dtype=torch.float64), torch.randn(W, dtype=torch.float64)
    padded = torch.nn.functional.pad(x, (3, 0, 1, 2))
    torch.testing.assert_close(
        functional.conv2d_act(x, weight, padding=(1, 2, 3, 0), activation="relu"),
        torch.nn.functional.conv2d(padded, weight).relu(),
    )


OPS = torch.ops.fastconv
UNIT = ([1, 1], [0, 0, 0, 0], [1, 1], 1)  # stride, padding, dilation, groups
POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)  # kernel size, stride, padding, dilation, ceil mode
INDEX = partial(zeros, dtype=torch.int64)
MISFITS = {
    "dgrad": (lambda: OPS.conv2d_dgrad(zeros(2, 6, 3, 4), zeros(*W), None, [5, 7], *UNIT), "gives 3x5"),
    "wgrad": (lambda: OPS.conv2d_wgrad(zeros(2, 6, 3, 4), zeros(2, 4, 5, 7), [3, 3], *UNIT, False), "gives 3x5"),
    "wgrad_batch": (lambda: OPS.conv2d_wgrad(zeros(3, 6, 3, 4), zeros(*X), [3, 3], *UNIT, False), "gives 3x4"),
    "max_dgrad": (lambda: OPS.max_pool2d_dgrad(zeros(2, 4, 2, 3), INDEX(2, 4, 2, 2), [5, 6], *POOL, False), "indices"),
    "max_dgrad_size": (lambda: OPS.max_pool2d_dgrad(zeros(2, 4, 2, 2), INDEX(2, 4, 2, 2), [5, 6], *POOL, False), "2x3"),
    "unpool": (lambda: OPS.max_unpool2d(zeros(2, 4, 2, 3), INDEX(2, 4, 3, 2), [5, 6]), "indices"),
    "unpool_dgrad": (lambda: OPS.max_unpool2d_dgrad(zeros(2, 4, 5, 6), INDEX(2, 3, 2, 3), False), "indices"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_gradients_and_indices_of_another_size_are_refused(case):
    """Autograd never passes them; who calls the operators might, and kernels trust the sizes they are given."""
    call, part = MISFITS[case]
    with pytest.raises(RuntimeError, match=part):
        call()
