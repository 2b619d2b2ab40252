"""Classifier-free guidance (Ho & Salimans 2022, Eq. 6), in one batched call of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError

Eps = Callable[[Tensor, Tensor, Any], Tensor]
"""eps(z_t (B,...), t (B,) int64, c (B,L,D) or whatever else the network takes) -> (B,...)"""

GuidedEps = Callable[[Tensor, Tensor, Any, Tensor | None], Tensor]


def guided(eps: Eps, scale: float) -> GuidedEps:
    """Wrap eps(z_t, t, c) into f(z_t, t, cond, uncond) -> (B, ...).

    f returns eps(uncond) + scale (eps(cond) - eps(uncond)): 0 ignores the prompt, 1 is the plain
    network, more than 1 follows the prompt closer. (The paper's w is scale - 1.) f calls `eps`
    once, with 2B rows, `uncond` first; with scale 1 or no `uncond`, with the B rows alone.
    `cond` and `uncond` are (B, L, D), or (1, L, D) for all rows; other lengths raise UserError. Either
    may be (B, n, L, D), a context for each of the network's n transformers.
    """

    def f(z_t: Tensor, t: Tensor, cond: Any, uncond: Tensor | None = None) -> Tensor:
        batch = z_t.shape[0]
        if isinstance(cond, Tensor):
            cond = _rows(cond, batch, "cond")
        if uncond is None or scale == 1:
            return eps(z_t, t, cond)
        if not isinstance(cond, Tensor):
            raise UserError("guidance needs a prompt: give cond as a tensor, or no uncond")
        uncond = _rows(uncond, batch, "uncond")
        if cond.shape[-2:] != uncond.shape[-2:]:
            raise UserError(f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} must have one shape")
        both = join_contexts([uncond.to(cond), cond])
        without, with_ = eps(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
        return without + scale * (with_ - without)

    return f


def join_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """The rows of several contexts (B_i, L, D) as one (B, L, D). Where some are (B_i, n, L, D), one for
    each transformer, all become so: (B, n, L, D)."""
    n = max((c.shape[1] for c in contexts if c.ndim == 4), default=None)
    if n is not None:
        contexts = [c if c.ndim == 4 else c[:, None].expand(-1, n, -1, -1) for c in contexts]
    return torch.cat(list(contexts))


def _rows(c: Tensor, batch: int, name: str) -> Tensor:
    if c.shape[0] == batch:
        return c
    if c.shape[0] == 1:
        return c.expand(batch, *c.shape[1:])
    raise UserError(f"{name} has {c.shape[0]} rows for {batch} latents: give {batch} rows, or 1")
