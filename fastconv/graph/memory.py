"""Where the values of a program lie in its arena: blocks that live at different times share bytes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

ALIGNMENT = 64


@dataclass(eq=False)
class Block:
    """A piece of the arena, alive from the stage that first writes it to the one that last reads it.

    at: its first byte, once :func:`place` has run.
    """

    bytes: int
    first: int | None = None
    last: int | None = None
    at: int = 0

    def live(self, stage: int) -> None:
        """A stage, in order, reads or writes it."""
        self.first, self.last = stage if self.first is None else self.first, stage

    def meets(self, other: Block) -> bool:
        return self.first <= other.last and other.first <= self.last


def place(blocks: Iterable[Block]) -> int:
    """Gives every block its place and returns the arena's size.

    The largest first, each into the lowest gap that no block of its time fills (Pisarchyk and Lee: Efficient Memory
    Management for Deep Neural Net Inference, 2020, "greedy by size").
    """
    placed: list[Block] = []
    end = 0
    for block in sorted(blocks, key=lambda b: (-b.bytes, b.first)):
        at = 0
        for other in sorted((b for b in placed if b.meets(block)), key=lambda b: b.at):
            if at + block.bytes <= other.at:
                break
            at = max(at, _aligned(other.at + other.bytes))
        block.at = at
        placed.append(block)
        end = max(end, at + block.bytes)
    return end


def alive_at_once(nodes: Sequence[fx.Node], bytes_of: Callable[[fx.Node], int], outputs: Container[fx.Node]) -> int:
    """The bytes that PyTorch would hold at its peak between these calls: each result until the call that last reads it.
    What is handed in and out counts as little as it does in an arena."""
    last = {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    alive: dict[fx.Node, int] = {}
    peak = 0
    for i, node in enumerate(nodes):
        if node not in outputs:
            alive[node] = bytes_of(node)
        peak = max(peak, sum(alive.values()))
        alive = {node: size for node, size in alive.items() if last.get(node, -1) > i}
    return peak


def _aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT
