"""Blocks that live at one time never share bytes, and an arena is not larger than it must be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv.graph.memory import ALIGNMENT, Block, place

BLOCKS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 12), st.integers(0, 4)).map(lambda t: Block(t[0], t[1], t[1] + t[2])),
    max_size=24,
)


@given(BLOCKS)
@settings(max_examples=300, deadline=None)
def test_blocks_of_one_time_are_apart(blocks):
    end = place(blocks)
    for i, a in enumerate(blocks):
        assert a.at % ALIGNMENT == 0 and a.at + a.bytes <= end
        for b in blocks[i + 1 :]:
            if a.meets(b) and a.bytes and b.bytes:
                assert a.at + a.bytes <= b.at or b.at + b.bytes <= a.at


@given(BLOCKS)
@settings(max_examples=100, deadline=None)
def test_an_arena_is_no_larger_than_all_its_blocks(blocks):
    assert place(blocks) <= sum(-(-b.bytes // ALIGNMENT) * ALIGNMENT for b in blocks)


def test_a_chain_of_layers_needs_two_of_them():
    blocks = [Block(640, i, i + 1) for i in range(10)]
    assert place(blocks) == 2 * 640
