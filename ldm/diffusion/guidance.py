"""Classifier-free guidance (Ho & Salimans 2022, Eq. 6), in one batched call of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.condition import Condition, Context, cat_contexts, wrong_rows
from ldm.errors import UserError

Eps = Callable[[Tensor, Tensor, Any], Tensor]
"""eps(z_t (B,...), t (B,) int64, cond) -> (B,...); cond: a Condition, or whatever else it takes."""

GuidedEps = Callable[[Tensor, Tensor, Any, Any], Tensor]


def guided(eps: Eps, scale: float) -> GuidedEps:
    """Wrap eps(z_t, t, cond) into f(z_t, t, cond, uncond) -> (B, ...).

    f returns eps(uncond) + scale (eps(cond) - eps(uncond)): 0 ignores the prompt, 1 is the plain
    network, more than 1 follows the prompt closer. (The paper's w is scale - 1.) f calls `eps`
    once, with 2B rows, `uncond` first; with scale 1 or no `uncond`, with the B rows alone.

    `cond` and `uncond` are each a `Condition` or a plain tensor (B, ...), of B rows or of one for all; other
    numbers of rows raise UserError. Of two plain tensors `eps` gets their rows; else it gets the `Context`
    at t, in which a plain tensor is (B, L, D). Without guidance `cond` may be anything.
    """

    def f(z_t: Tensor, t: Tensor, cond: Any, uncond: Any = None) -> Tensor:
        cond = _rows(cond, t, "cond")
        if uncond is None or scale == 1:
            return eps(z_t, t, cond)
        if not isinstance(cond, Tensor | Context):
            raise UserError("guidance needs a prompt: give cond as a tensor or a Condition, or no uncond")
        both = _join(_rows(uncond, t, "uncond"), cond)
        without, with_ = eps(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
        return without + scale * (with_ - without)

    return f


def _rows(given: Any, t: Tensor, name: str) -> Any:
    """One row for each of t (B,), of a condition at t."""
    if isinstance(given, Condition):
        return given.expand(len(t), name).at(t)
    if isinstance(given, Tensor):
        if len(given) not in (1, len(t)):
            raise wrong_rows(name, len(given), len(t))
        return given.expand(len(t), *given.shape[1:])
    return given


def _join(uncond: Tensor | Context, cond: Tensor | Context) -> Tensor | Context:
    if isinstance(uncond, Tensor) and isinstance(cond, Tensor):
        if cond.shape != uncond.shape:
            raise UserError(f"cond {tuple(cond.shape)} and uncond {tuple(uncond.shape)} must have one shape")
        return torch.cat([uncond.to(cond), cond])
    without, with_ = Context.of(uncond), Context.of(cond)
    return cat_contexts([without.to(with_.tokens), with_])
