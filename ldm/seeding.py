"""Explicit randomness: one generator for every (seed, key, ...), independent of all others."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is named by the seed and the keys (a step, an image, a concept).

    On ``device``: kinds of device differ in their streams.
    """
    digest = hashlib.sha256(repr((seed, *keys)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
