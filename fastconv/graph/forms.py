"""A plan's filters as its kernels read them: packed once for all programs, held while one reads them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastconv._native import C
from fastconv.graph.select import Selection
from fastconv.graph.values import Filter
from fastconv.graph.weights import Weights
from fastconv.kernels import native


class Forms:
    """made: the filters, by kernel, constant and form."""

    def __init__(self, weights: Weights):
        self._weights = weights
        self.made: dict[Any, Tensor] = {}
        self._waiting: dict[Any, tuple[Selection, Filter, Tensor]] = {}

    def constant(self, selection: Selection, filter: Filter) -> Tensor:
        """The filter as the selection's kernel reads it. A packed one is empty until :meth:`pack`."""
        row, packed = selection.kernel.native, selection.problem.packed
        key = (row, filter, C.packed_form(row, selection.problem)) if packed else (None, filter, None)
        if key in self.made:
            return self.made[key]
        if not packed:
            with self._weights.lent(filter.name) as weight:
                self.made[key] = filter.of(weight)
            return self.made[key]
        if key not in self._waiting:
            size, _ = C.packed_form(row, selection.problem)
            self._waiting[key] = selection, filter, torch.empty(size, dtype=torch.uint8)
        return self._waiting[key][2]

    def pack(self) -> None:
        """Packs what was asked for, the largest first: then little else is there beside a filter and its form."""
        waiting, self._waiting = self._waiting, {}
        for key, (selection, filter, form) in sorted(waiting.items(), key=lambda item: -item[1][2].numel()):
            self._pack(selection, filter, form)
            self.made[key] = form

    def _pack(self, selection: Selection, filter: Filter, form: Tensor) -> None:
        row, problem = selection.kernel.native, selection.problem
        with self._weights.lent(filter.name) as weight:
            ordered = filter.of(weight)
            if ordered.data_ptr() == weight.data_ptr():
                native.pack(row, problem, ordered, form)
                return
        del weight  # a copy was made of it
        native.pack(row, problem, ordered, form)

    def only(self, read: Iterable[Tensor]) -> None:
        """Drops all but these."""
        kept = set(map(id, read))
        self.made = {key: form for key, form in self.made.items() if id(form) in kept}
