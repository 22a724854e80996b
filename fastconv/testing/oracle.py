"""Judges results on real-valued operands before they are timed: one float64 result, any number of kernels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastconv import reference, reference_map, reference_pool, reference_rows, registry
from fastconv.kernels import aten
from fastconv.problem import Problem
from fastconv.testing import inputs, tolerances

# FLOPs beyond which the float64 loops would take minutes; PyTorch's float64 convolution stands in, and is named.
HUGE = 2e10

REFERENCE = "fastconv.reference in float64"
ATEN = "PyTorch in float64"
SEED = 0
UNWRITTEN = 255  # no window has so many taps; as a position it is wrong almost everywhere


@dataclass(frozen=True)
class Oracle:
    """Operands of a problem, the exact result, and how far from it a right result may be.

    tensors: keyword arguments of a kernel's run(), in the problem's layout.
    size: the sum of absolute products, which errors are measured against; None demands equality.
    terms: how many terms that sum has.
    source: where the exact result comes from.
    indices: where a max pool finds its maxima, as tap numbers (uint8) and as positions (int64); -1 where it finds none.
    """

    problem: Problem
    tensors: dict[str, Tensor]
    expected: Tensor
    size: Tensor | None
    terms: int
    source: str
    indices: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def verdict_of_call(self, result: object, tensors: dict[str, Tensor], kernel_name: str) -> str | None:
        """The verdict on what a call returned, and on the indices it returned beside or wrote into ``tensors``."""
        out = result if isinstance(result, Tensor) else next(t for t in result if t is not None)
        wrong = self.verdict(out, kernel_name)
        if wrong or not self.indices:
            return wrong
        return self._verdict_of_index(tensors["index"] if isinstance(result, Tensor) else result[1])

    def _verdict_of_index(self, index: Tensor) -> str | None:
        expected = self.indices[index.dtype]
        wrong = (index.long() != expected) & (expected >= 0)
        if not wrong.any():
            return None
        first = tuple(wrong.nonzero()[0].tolist())
        return (
            f"{int(wrong.sum())} of {wrong.numel()} indices are wrong: at {first} the kernel gave "
            f"{index[first].item()}, exact is {expected[first].item()}."
        )

    def verdict(self, out: Tensor, kernel_name: str) -> str | None:
        """None when ``out`` is right, else a sentence."""
        if self.problem.out_channels:
            first = self.problem.out_offset
            out = out[:, first : first + self.expected.shape[1]]
        if out.shape != self.expected.shape:
            return f"The result has shape {tuple(out.shape)}, not {tuple(self.expected.shape)}."
        error = (out.double() - self.expected).abs()
        limits = self._limits(kernel_name)
        if limits is None:
            allowed, norm = torch.zeros_like(self.expected), float("inf")
        else:  # unfused, torch rounds after every step of the epilogue
            allowed = tolerances.allowed(*limits, roundings=4 if kernel_name.endswith("_aten") else 1)
            norm = tolerances.allowed_l2(*limits)
        wrong = ~((error <= allowed) | (out == self.expected))  # infinities are right when equal
        if not wrong.any():
            if norm < float("inf") and error.norm() > norm:
                return f"The error's norm {error.norm().item():.3g} exceeds {norm:.3g}."
            return None
        first = tuple(wrong.nonzero()[0].tolist())
        return (
            f"{int(wrong.sum())} of {wrong.numel()} elements are wrong: at {first} the kernel gave "
            f"{out[first].item():.6g}, exact is {self.expected[first].item():.6g}."
        )

    def _limits(self, kernel_name: str) -> tuple[str, int, str, Tensor, Tensor] | None:
        """What ``tolerances`` judges by; None where equality is demanded."""
        if self.size is None:
            return None
        algorithm, size = registry.algorithm_of(kernel_name), self.size
        if algorithm in tolerances.TILE:
            pair = (self.tensors[name] for name in inputs.operand_names(self.problem))
            size = size.maximum(tolerances.winograd_size(self.problem, *pair, algorithm))
        return self.problem.dtype, self.terms + 2, algorithm, size, self.expected


def ask(problem: Problem) -> Oracle:
    """Makes operands and computes the exact result; the same for the same problem."""
    if problem.is_norm:
        return _ask_norm(problem)
    if problem.op in reference_map.OPS:
        return _ask_map(problem)
    if problem.op in reference_rows.OPS:
        return _ask_rows(problem)
    return _ask_conv(problem) if problem.is_conv else _ask_pool(problem)


def _ask_conv(problem: Problem) -> Oracle:
    operands = inputs.make(problem, SEED, integer=False)
    tensors = operands.named(problem)
    pair = {name: tensors[name] for name in inputs.operand_names(problem)}
    exact = _huge if problem.flops > HUGE else reference.conv2d
    expected = reference.epilogue(problem, exact(problem, **pair), operands.bias, operands.residual)
    size = exact(problem, **{name: t.abs() for name, t in pair.items()})
    for extra in (operands.bias[:, None, None] if operands.bias is not None else None, operands.residual):
        if extra is not None:
            size = size + extra.double().abs()
    source = ATEN if exact is _huge else REFERENCE
    return Oracle(problem, tensors, expected, size, inputs.terms(problem), source)


def _huge(problem: Problem, **tensors: Tensor) -> Tensor:
    run = {"fprop": aten.conv_fprop, "dgrad": aten.conv_dgrad, "wgrad": aten.conv_wgrad}[problem.pass_]
    plain = problem.replace(dtype="f64", bias=False, residual=False, activation="none", out_channels=0, out_offset=0)
    return run(plain, **{name: t.double() for name, t in tensors.items()}).contiguous()


def _ask_norm(problem: Problem) -> Oracle:
    from fastconv.testing import check_norm, norm_case

    case = check_norm.case(problem, "normal", SEED)
    tensors = case.tensors | {"x": inputs.in_buffer(problem, case.tensors["x"])}
    if case.stats is not None:
        tensors["stats"] = torch.empty_like(case.stats, dtype=norm_case.arithmetic(problem))
    if problem.op == "lrn2d":  # the bound of its gradient
        terms = 2 * (min(problem.size, problem.c) + norm_case.STEPS)
    else:  # the exact result may hold more terms than a sum has: a training batch counts in every element
        terms = problem.n * problem.h.size * problem.w.size + norm_case.STEPS
    return Oracle(problem, tensors, case.expected, case.size, terms, "fastconv.reference_norm in float64")


def _ask_map(problem: Problem) -> Oracle:
    from fastconv.testing import check_map

    case = check_map.case(problem, "normal", SEED)
    size, terms = case.size, check_map.STEPS
    if problem.op in ("reorder2d", "nearest2d"):
        size = None
    elif problem.op == "bilinear2d":
        # PyTorch takes its places in float: they are off by some units of the size, and weigh the neighbours.
        size = reference_map.interpolate(problem, case.tensors["x"].abs(), weighted=False)
        terms += (problem.h.size + problem.w.size) ** 2
    return Oracle(problem, case.tensors, case.expected, size, terms, "fastconv.reference_map in float64")


def _ask_rows(problem: Problem) -> Oracle:
    from fastconv.testing import check_rows

    case, terms = check_rows.case(problem, "normal", SEED), check_rows.terms(problem)
    size = None if problem.op == "copy2d" else case.size
    return Oracle(problem, case.tensors, case.expected, size, terms, "fastconv.reference_rows in float64")


def _ask_pool(problem: Problem) -> Oracle:
    from fastconv.testing import check_pool

    tensors, expected, _, bound = check_pool.case(problem, "normal", SEED)
    size, terms = bound if bound else (None, 0)
    tensors = {name: t.contiguous(memory_format=inputs.memory_format(problem)) for name, t in tensors.items()}
    indices = {}
    if problem.pass_ == "fprop" and problem.index != "none" and "index" not in tensors:
        kinds = {check_pool.INDEX_DTYPES[kind]: problem.replace(index=kind) for kind in ("i64", problem.index)}
        indices = {dtype: reference_pool.max_pool(of, tensors["x"])[1] for dtype, of in kinds.items()}
        index = torch.full(expected.shape, UNWRITTEN, dtype=check_pool.INDEX_DTYPES[problem.index])
        tensors["index"] = index.contiguous(memory_format=inputs.memory_format(problem))
    return Oracle(problem, tensors, expected, size, terms, "fastconv.reference_pool in float64", indices)
