"""What became of a model: how much of it runs as plans, and what stayed PyTorch's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastconv.graph.partition import left_to_pytorch

if TYPE_CHECKING:
    from fastconv.graph.optimized import Optimized


@dataclass(frozen=True)
class StageTime:
    """What one stage of a plan took in one run: a kernel, several that run together in strips, or operators that
    PyTorch ran (without problems)."""

    kernels: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Footprint:
    """Memory of one program, for inputs of these shapes.

    arena: bytes of one run's arena. results: what PyTorch would hold at its peak for the same operators. constants: of
    filters and biases as its kernels read them, which programs of other shapes share where their kernels do.
    """

    shapes: tuple[tuple[int, ...], ...]
    arena: int
    results: int
    constants: int

    def __str__(self) -> str:
        inputs = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        return (
            f"for {inputs}: an arena of {self.arena / 1e6:.1f} MB; in PyTorch {self.results / 1e6:.1f} MB of results; "
            f"{self.constants / 1e6:.1f} MB of filters"
        )


@dataclass(frozen=True)
class Report:
    """planned: operators in each plan. left: operators that PyTorch runs between them, with how often they occur.
    footprints: of the programs that there are by now."""

    planned: tuple[int, ...]
    left: Counter[str]
    batched: bool
    footprints: tuple[Footprint, ...] = ()

    @classmethod
    def of(cls, module: Optimized) -> Report:
        planned = tuple(len(part.nodes) for part in module.parts if part.planned)
        batched = any(-1 in getattr(given, "sizes", ()) for given in module.signature.inputs)
        footprints = [f for unit in module.units for f in getattr(unit, "footprints", {}).values()]
        return cls(planned, left_to_pytorch(module.parts), batched, tuple(footprints))

    def __str__(self) -> str:
        batch = "any batch" if self.batched else "this batch alone"
        lines = [f"{sum(self.planned)} operators in {len(self.planned)} plans, for {batch}"]
        if self.left:
            names = ", ".join(f"{count} x {name}" for name, count in self.left.most_common())
            lines.append(f"{sum(self.left.values())} operators stay PyTorch's: {names}")
        return "\n".join([*lines, *map(str, self.footprints)])
