"""Two convolutions in one kernel. torch has no such functions; arguments are named as theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastconv.functional.arguments import Ints, as_tuple, sides
from fastconv.kernels import pairs, triton
from fastconv.problem import Problem

ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu", "gelutanh")
DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def depthwise_pointwise(
    input: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    depthwise_bias: Tensor | None = None,
    pointwise_bias: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    activations: tuple[str, str] = ("none", "none"),
    residual: Tensor | None = None,
) -> Tensor:
    """A depthwise convolution and the 1x1 behind it, both with bias and activation, in one kernel, CUDA C++ or Triton.

    input: (N, C, H, W) on a GPU; depthwise: (C·M, 1, R, S); pointwise: (K, C·M, 1, 1); residual: the shape of the
    result, (N, K, P, Q). stride, padding and dilation are the depthwise convolution's. It has no gradient.
    Raises RuntimeError where a gradient is asked for, for tensors that are not on one GPU or not of one dtype, and for
    shapes that do not fit; ValueError for an unknown activation.
    """
    tensors = {
        "input": input,
        "depthwise": depthwise,
        "pointwise": pointwise,
        "depthwise_bias": depthwise_bias,
        "pointwise_bias": pointwise_bias,
        "residual": residual,
    }
    given = {name: t for name, t in tensors.items() if t is not None}
    for name in activations:
        if name not in ACTIVATIONS:
            raise ValueError(f"activations are two of {', '.join(ACTIVATIONS)}; {name!r} is none of them.")
    _check(given)
    first, second = _problems(input, depthwise, pointwise, stride, padding, dilation)
    first = first.replace(bias=depthwise_bias is not None, activation=activations[0])
    second = second.replace(bias=pointwise_bias is not None, residual=residual is not None, activation=activations[1])
    kernel = pairs.choose(first, second, input.device.type)
    shapes = {
        "depthwise_bias": (first.k,),
        "pointwise_bias": (second.k,),
        "residual": (second.n, second.k, second.h.out, second.w.out),
    }
    for name, shape in shapes.items():
        if name in given and tuple(given[name].shape) != shape:
            raise RuntimeError(f"{name} has shape {tuple(given[name].shape)}, but the result needs {shape}.")
    format = torch.channels_last if first.layout == "nhwc" else torch.contiguous_format
    return kernel.run(
        first,
        second,
        x=input.contiguous(memory_format=format),
        w=depthwise,
        filter=pointwise,
        depthwise_bias=None if depthwise_bias is None else depthwise_bias.contiguous(),
        bias=None if pointwise_bias is None else pointwise_bias.contiguous(),
        residual=None if residual is None else residual.contiguous(memory_format=format),
    )


def _check(given: dict[str, Tensor]) -> None:
    """Devices, dtypes, dimensions and gradients."""
    input = given["input"]
    if input.device.type != "cuda" and (triton.missing() or not triton.load("common").INTERPRETED):
        raise RuntimeError(f"The kernel runs on a GPU, but input is on {input.device}.")
    if input.dtype not in DTYPES:
        raise RuntimeError(f"input is one of float32, float16 and bfloat16, not {input.dtype}.")
    for name, t in given.items():
        if (t.device, t.dtype) != (input.device, input.dtype):
            raise RuntimeError(f"{name} is {t.dtype} on {t.device}, but input is {input.dtype} on {input.device}.")
        if torch.is_grad_enabled() and t.requires_grad:
            raise RuntimeError(f"The kernel has no gradient, but {name} requires one: call it in torch.no_grad().")
    for name in ("input", "depthwise", "pointwise"):
        if given[name].dim() != 4:
            raise RuntimeError(f"{name} has 4 dimensions, not {given[name].dim()}.")


def _problems(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride, padding, dilation) -> tuple[Problem, Problem]:
    """Both convolutions, without their epilogues."""
    n, c, height, width = x.shape
    filters, one, *window = depthwise.shape
    k, depth, *pixel = pointwise.shape
    if one != 1 or c == 0 or filters % c or filters == 0:
        raise RuntimeError(f"depthwise has shape {tuple(depthwise.shape)}, but C={c} channels need (M·{c}, 1, R, S).")
    if depth != filters or pixel != [1, 1]:
        raise RuntimeError(f"pointwise has shape {tuple(pointwise.shape)}, but it reads (K, {filters}, 1, 1).")
    (u, v), (d, e) = as_tuple(stride, 2, "stride"), as_tuple(dilation, 2, "dilation")
    top, bottom, left, right = sides(padding, depthwise.shape[2:], (u, v), (d, e))
    kind = kind_of(x)
    try:
        first = Problem(
            f"n{n}c{c}h{height}w{width}_k{filters}r{window[0]}s{window[1]}_u{u}x{v}"
            f"_p{top}:{bottom}x{left}:{right}_d{d}x{e}_g{c}_{kind}"
        )
        second = Problem(f"n{n}c{filters}h{first.h.out}w{first.w.out}_k{k}r1s1_{kind}")
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    return first, second


def kind_of(x: Tensor) -> str:
    """Dtype and layout of a problem on ``x``, as its text has them; TF32 where torch lets its own convolutions.

    The precision is asked for by operator: ``torch.backends.cudnn.allow_tf32`` raises where torch's operators differ.
    """
    # torch's rule: a tensor that is dense in both orders counts as NCHW.
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    dtype = DTYPES[x.dtype]
    if dtype == "f32" and x.device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision == "tf32":
        dtype = "tf32"
    return dtype + ("nhwc" if last else "nchw")
