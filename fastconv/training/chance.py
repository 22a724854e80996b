"""Random numbers as a function of what they are for, so that a run has nothing to remember about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BYTES = 8
_SEEDS = 2**63


def seed_of(*purpose: int | str) -> int:
    """A seed for one purpose: the same for the same words, unrelated for others."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=_BYTES).digest()
    return int.from_bytes(digest, "big") % _SEEDS


def generator_for(*purpose: int | str) -> torch.Generator:
    """A fresh generator of that seed."""
    return torch.Generator().manual_seed(seed_of(*purpose))


@contextmanager
def drawing_for(*purpose: int | str) -> Iterator[None]:
    """Inside, torch's own generator draws for that purpose; outside, it goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(*purpose))
        yield
