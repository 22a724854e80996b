"""The passes over a captured graph, in the order in which they run. Each is one file, and a function ``run(network)``
that changes the network's graph in place; after each the graph still computes what it did before.
"""

from __future__ import annotations

from fastconv.graph.network import Network
from fastconv.graph.passes import (
    absorb_padding,
    constant_terms,
    fold_batch_norm,
    fold_constants,
    fuse_epilogue,
    leading_tokens,
    merge_concats,
    regroup,
    tidy,
)

PASSES = (
    tidy,
    fold_constants,
    leading_tokens,
    constant_terms,
    regroup,
    fold_batch_norm,
    absorb_padding,
    fuse_epilogue,
    merge_concats,
    tidy,
)


def run(network: Network) -> None:
    """All passes."""
    for each in PASSES:
        each.run(network)
        network.graph.lint()
