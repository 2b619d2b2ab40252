"""Samplers: from noise to latents (`sample`) and back (`invert`), given any eps(z_t, t, cond)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.guidance import Eps
from ldm.diffusion.samplers.base import (
    Callback,
    Generators,
    Sampler,
    SamplerState,
    bind,
    drive,
    moves,
    timesteps,
)
from ldm.diffusion.samplers.blending import Blend, last_moves
from ldm.diffusion.samplers.ddim import DDIM
from ldm.diffusion.samplers.ddim_inversion import invert
from ldm.diffusion.samplers.dpmpp import DPMSolverPP2M
from ldm.diffusion.samplers.plms import PLMS
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

__all__ = ["SAMPLERS", "Callback", "Generators", "SamplerState", "invert", "sample", "timesteps"]

SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddim": DDIM, "plms": PLMS, "dpm++": DPMSolverPP2M}


@torch.no_grad()
def sample(
    eps: Eps,
    x_T: Tensor,
    *,
    cond: Any,
    uncond: Any = None,
    scale: float = 1.0,
    schedule: Schedule,
    sampler: str = "ddim",
    steps: int = 50,
    eta: float = 0.0,
    generator: Generators = None,
    callback: Callback | None = None,
    progress: bool = False,
    source: Tensor | None = None,
    strength: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Draw latents, from noise alone or from a picture's.

    Args:
        eps: eps(z_t (B,...), t (B,) int64, cond) -> the noise in z_t (B,...), whatever the network's
            own parameterization; called once a step (PLMS: once more at its first).
        x_T: (B, ...) standard normal noise; its dtype and device are those of the result.
        cond: a `Condition` or a tensor (B, ...), of one row for all or one for each; or, without guidance,
            whatever `eps` takes.
        uncond: the empty prompt's condition, alike; None samples without guidance.
        scale: guidance scale; 1 is none. See `ldm.diffusion.guidance`.
        schedule: the noise schedule the network was trained with.
        sampler: a name in SAMPLERS.
        steps: exactly how many steps, 1 to T.
        eta: 0 to 1, DDIM's share of ancestral noise; the other samplers have none.
        generator: source of that noise: one, or a list of one per row.
        callback: called once a step with a `SamplerState`.
        progress: show a progress bar.
        source: (B, ...) or (1, ...) scaled latents of a picture, which x_T noises.
        strength: share of the steps that are taken, in (0, 1], from the source at that noise level
            (SDEdit); 1 starts from x_T itself.
        mask: broadcast against `source`: 1 where to paint, 0 where the source stays at every level
            and, clean, in the end. See `ldm.diffusion.samplers.blending`.

    Returns: z_0 (B, ...), at the noise level of timestep 0.
    Raises UserError for an unknown sampler, an eta that it does not have, steps outside 1 .. T, a
        strength outside (0, 1], a strength or a mask without a source.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}: use one of {', '.join(SAMPLERS)}")
    if eta and sampler != "ddim":
        raise UserError(f"eta {eta} needs the sampler ddim: {sampler} is deterministic")
    if source is None and (strength != 1 or mask is not None):
        raise UserError("strength and mask need a source picture to start from")
    rule = DDIM(eta, generator) if sampler == "ddim" else SAMPLERS[sampler]()
    at = bind(eps, cond, uncond, scale)
    step = partial(rule.step, at)
    path = last_moves(moves(schedule, steps), strength)
    blend = None if source is None else Blend(schedule, source, x_T, mask)
    start = x_T if blend is None else blend.start(path[0].t, strength)
    return drive(step, start, path, callback, progress, f"sampling ({sampler})", blend)
