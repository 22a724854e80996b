"""What became of a model: how much of it runs as plans, and what stayed PyTorch's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastconv.graph.partition import left_to_pytorch

if TYPE_CHECKING:
    from fastconv.graph.optimize import Optimized


@dataclass(frozen=True)
class Report:
    """planned: operators in each plan. left: operators that PyTorch runs between them, with how often they occur."""

    planned: tuple[int, ...]
    left: Counter[str]
    batched: bool

    @classmethod
    def of(cls, module: Optimized) -> Report:
        planned = tuple(len(part.nodes) for part in module.parts if part.planned)
        batched = any(-1 in getattr(given, "sizes", ()) for given in module.signature.inputs)
        return cls(planned, left_to_pytorch(module.parts), batched)

    def __str__(self) -> str:
        batch = "any batch" if self.batched else "this batch alone"
        lines = [f"{sum(self.planned)} operators in {len(self.planned)} plans, for {batch}"]
        if self.left:
            names = ", ".join(f"{count} x {name}" for name, count in self.left.most_common())
            lines.append(f"{sum(self.left.values())} operators stay PyTorch's: {names}")
        return "\n".join(lines)
