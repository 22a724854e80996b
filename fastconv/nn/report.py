"""What swap did, or would do, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastconv.nn.observe import Observation

ANY_PROBLEM = "any"
CHOSEN_LATER = "chosen at the first call"
NOT_REACHED = "not reached by the example"
TORCHS_OWN = "PyTorch's own operator"


@dataclass(frozen=True)
class Row:
    """One layer.

    name: its path in the model; empty for the model itself.
    kind: its class.
    kept: None for a swapped layer, else the sentence that says why it stays what it was.
    seen: what it did in the example pass; None without one.
    """

    name: str
    kind: str
    kept: str | None = None
    seen: Observation | None = field(default=None, repr=False)

    @property
    def problem(self) -> str:
        """The problems it met in the example pass; "any" without one."""
        if self.seen is None or not self.seen.calls:
            return ANY_PROBLEM
        return ", ".join(dict.fromkeys(str(call.problem) for call in self.seen.calls))

    @property
    def kernel(self) -> str:
        """The kernels that ran in the example pass, or when they will be chosen."""
        if self.seen is None:
            return CHOSEN_LATER if self.kept is None else TORCHS_OWN
        if self.seen.calls:
            return ", ".join(dict.fromkeys(call.kernel for call in self.seen.calls))
        if not self.seen.dtypes:
            return NOT_REACHED
        return f"{TORCHS_OWN}, for {' and '.join(sorted(map(str, self.seen.dtypes)))}"


@dataclass(frozen=True)
class Report:
    """Every convolution, pool and norm of a model, in the model's order; ``str(report)`` is a table.

    sequences: names of the ``nn.Sequential`` whose convolutions run with the norm and the activation behind them where
        no gradient is wanted.
    """

    rows: tuple[Row, ...]
    dry_run: bool = False
    sequences: tuple[str, ...] = ()

    @property
    def swapped(self) -> tuple[Row, ...]:
        """Layers that run on fastconv now (in a dry run: would)."""
        return tuple(row for row in self.rows if row.kept is None)

    @property
    def kept(self) -> tuple[Row, ...]:
        """Layers that stay as they were."""
        return tuple(row for row in self.rows if row.kept is not None)

    @property
    def counts(self) -> Counter[str]:
        """How many layers of each kind were swapped."""
        return Counter(row.kind for row in self.swapped)

    def __str__(self) -> str:
        swapped, kept = self.swapped, self.kept
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        verb = "would run" if self.dry_run else "run"
        lines = [f"{len(swapped)} of {len(self.rows)} layers {verb} on fastconv" + (f": {kinds}." if kinds else ".")]
        if self.sequences:
            count = len(self.sequences)
            lines.append(f"In inference {count} sequences {verb} convolutions together with what stands behind them.")
        if swapped:
            cells = [(_shown(row.name), row.kind, row.problem, row.kernel) for row in swapped]
            lines += ["", *table(("layer", "kind", "problem", "kernel"), cells)]
        if kept:
            cells = [(_shown(row.name), row.kind, row.kept) for row in kept]
            lines += ["", *table(("kept as it was", "kind", "why"), cells)]
        return "\n".join(lines)


def _shown(name: str) -> str:
    return name or "(the model)"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns under their headings, one line a row."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
