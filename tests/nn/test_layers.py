"""Every drop-in layer is torch's layer: ModuleInfo's inputs, values, gradients, strides, repr and state."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db

import fastconv
from fastconv.nn.layers import LAYERS

INFOS = [info for info in module_db if info.module_cls in LAYERS]
# Sums of these integers are exact in every order, so a convolution has one right answer.
LARGEST = 2
# An average is an exact sum and one division.
AVERAGE_TOLERANCE = {torch.float32: 2.0**-22, torch.float64: 2.0**-51}
# A norm is roots, quotients and sums of what they give; of the largest element.
NORM_TOLERANCE = {torch.float32: 2.0**-20, torch.float64: 2.0**-48}
SETTINGS = ("*", "-*aten")


def integers_like(tensor: torch.Tensor) -> torch.Tensor:
    values = torch.randint(-LARGEST, LARGEST + 1, tensor.shape).to(tensor.dtype)
    return torch.empty_like(tensor).copy_(values)


def pair(cls: type[nn.Module], *args, **kwargs) -> tuple[nn.Module, nn.Module]:
    """torch's layer and ours with the same integer parameters."""
    theirs, ours = cls(*args, **kwargs), LAYERS[cls](*args, **kwargs)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(integers_like(parameter))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, average: bool, norm: bool = False) -> None:
    if norm:
        size = NORM_TOLERANCE[theirs.dtype] * (theirs.abs().max().item() if theirs.numel() else 0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=size, check_stride=True)
    elif average:
        torch.testing.assert_close(ours, theirs, rtol=AVERAGE_TOLERANCE[theirs.dtype], atol=0, check_stride=True)
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, check_stride=True)


def check(theirs: nn.Module, ours: nn.Module, args: list, kwargs: dict) -> None:
    """Outputs and gradients of inputs and parameters, with their strides.

    A parameter's gradient is what ends in ``.grad``: on the way there the layouts may differ, in ``.grad`` it is the
    parameter's.
    """
    average, results = "Avg" in type(theirs).__name__, []
    for module in (theirs, ours):
        inputs = [a.detach().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a for a in args]
        outputs = tensors(module(*inputs, **kwargs))
        wanted = [i for i in inputs if isinstance(i, torch.Tensor) and i.requires_grad]
        torch.manual_seed(1)
        dy = integers_like(outputs[0].detach())
        gradients = torch.autograd.grad(outputs[0], wanted, dy, retain_graph=True)
        module.zero_grad()
        if outputs[0].requires_grad:
            outputs[0].backward(dy)
        if module is theirs and "AdaptiveAvg" in type(theirs).__name__ and outputs[0].shape[2:].numel() == 1:
            # The gradient of a global average keeps the input's layout, where torch's falls back to contiguous.
            gradients = [torch.empty_like(i).copy_(g) for i, g in zip(wanted, gradients, strict=True)]
        results.append([*outputs, *gradients, *(parameter.grad for parameter in module.parameters())])
    assert len(results[0]) == len(results[1])
    for mine, reference in zip(results[1], results[0], strict=True):
        assert_same(mine, reference, average, norm="Norm" in type(theirs).__name__)


def test_the_table_holds_torchs_classes():
    assert all(ours.__base__ is theirs and ours.__name__ == theirs.__name__ for theirs, ours in LAYERS.items())
    assert all(getattr(fastconv.nn, cls.__name__) is LAYERS[cls] for cls in LAYERS)


@pytest.mark.parametrize("kernel", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.module_cls.__name__)
def test_equals_torch_on_module_info(info, dtype, kernel):
    torch.manual_seed(0)
    samples = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=False, training=True)
    count = 0
    with fastconv.config(kernel=kernel):
        for sample in samples:
            theirs, ours = pair(info.module_cls, *sample.constructor_input.args, **sample.constructor_input.kwargs)
            theirs, ours = theirs.to(dtype), ours.to(dtype)
            for channels_last in (False, True):
                args = [
                    integers_like(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
                    for a in sample.forward_input.args
                ]
                if channels_last:
                    args = [a.contiguous(memory_format=torch.channels_last) if _is_4d(a) else a for a in args]
                check(theirs, ours, args, sample.forward_input.kwargs)
            count += 1
    assert count > 0


def _is_4d(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 4


PADDED = [(cls, mode) for cls in (nn.Conv1d, nn.Conv2d) for mode in ("zeros", "reflect", "replicate", "circular")]


@pytest.mark.parametrize("kernel", SETTINGS)
@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 3)])
@pytest.mark.parametrize(("cls", "mode"), PADDED, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_padding_modes(cls, mode, padding, kernel):
    dims = 1 if cls is nn.Conv1d else 2
    if dims == 1 and padding == (1, 3):
        padding = 3
    window, dilation = (4, 3)[:dims], (1, 2)[:dims]
    theirs, ours = pair(cls, 4, 6, window, padding=padding, dilation=dilation, groups=2, padding_mode=mode)
    with fastconv.config(kernel=kernel):
        check(theirs, ours, [integers_like(torch.empty(2, 4, *(9, 7)[:dims]))], {})


@pytest.mark.parametrize("kernel", SETTINGS)
@pytest.mark.parametrize(("cls", "dims"), [(nn.ConvTranspose1d, 1), (nn.ConvTranspose2d, 2)])
def test_transposed_output_size(cls, dims, kernel):
    theirs, ours = pair(cls, 4, 6, (3, 4)[:dims], stride=(3, 2)[:dims], padding=1, groups=2)
    x = integers_like(torch.empty(2, 4, *(5, 6)[:dims]))
    smallest = theirs(x).shape[2:]
    with fastconv.config(kernel=kernel):
        for extra in (0, 1):
            size = [s + extra for s in smallest]
            check(theirs, ours, [x], {"output_size": size})
            check(theirs, ours, [x], {"output_size": torch.Size([2, 6, *size])})
    for wrong in ([s + 9 for s in smallest], [1] * (dims + 1)):
        with pytest.raises(ValueError, match=r"output_size must have|requested an output size"):
            ours(x, output_size=wrong)


def test_transposed_padding_mode_set_later_raises():
    layer = fastconv.nn.ConvTranspose2d(1, 1, 2)
    layer.padding_mode = "reflect"
    with pytest.raises(ValueError, match="padding_mode is 'reflect'"):
        layer(torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("size", [None, [9, 8], torch.Size([2, 3, 9, 8])], ids=["none", "2", "4"])
def test_unpool(size):
    pool = nn.MaxPool2d((3, 2), return_indices=True)
    y, index = pool(integers_like(torch.empty(2, 3, 9, 8)))
    theirs, ours = pair(nn.MaxUnpool2d, (3, 2))
    check(theirs, ours, [y, index], {} if size is None else {"output_size": size})


POOLS_WITH_INDICES = [nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d]


@pytest.mark.parametrize("cls", POOLS_WITH_INDICES, ids=lambda cls: cls.__name__)
def test_pools_return_indices(cls):
    dims = 2 if cls.__name__.endswith("2d") else 1
    theirs, ours = pair(cls, (2, 3)[:dims], return_indices=True)
    check(theirs, ours, [integers_like(torch.empty(2, 3, *(9, 8)[:dims]))], {})


EXAMPLES = {
    "Conv": (4, 6, 3),
    "Max": (2,),
    "Avg": (2,),
    "Ada": (2,),
    "Bat": (4,),
    "Loc": (3,),
}


@pytest.mark.parametrize("cls", LAYERS, ids=lambda cls: cls.__name__)
def test_construction_repr_state_and_pickle_are_torchs(cls):
    args = EXAMPLES[cls.__name__[:4] if cls.__name__.startswith("Conv") else cls.__name__[:3]]
    theirs, ours = pair(cls, *args)
    assert inspect.signature(LAYERS[cls]) == inspect.signature(cls)
    assert inspect.signature(LAYERS[cls].forward).parameters.keys() == inspect.signature(cls.forward).parameters.keys()
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert vars(ours).keys() == vars(theirs).keys()
    again = pickle.loads(pickle.dumps(ours))
    assert type(again) is LAYERS[cls]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), theirs.parameters(), strict=True))
