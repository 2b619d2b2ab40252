"""Explicit randomness: one generator for every (seed, key, ...), independent of all others."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator whose stream is named by the seed and the keys (a step, an image, a concept)."""
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
