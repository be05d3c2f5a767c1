"""One generator per purpose, derived from the run's seed and the purpose's name; nothing is seeded globally."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """Returns a CPU generator that depends on `seed` and `purpose` alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
