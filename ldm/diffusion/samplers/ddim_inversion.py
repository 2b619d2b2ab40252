"""DDIM inversion: the deterministic sampler run backwards, from latents to the noise behind them.

Dhariwal & Nichol 2021, App. F; Song et al. 2021 (DDIM), Sec. 4.3; Gal et al. 2022, App. A.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.guidance import Eps
from ldm.diffusion.samplers.base import Callback, Move, bind, drive, moves
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError


@torch.no_grad()
def invert(
    eps: Eps,
    z_0: Tensor,
    *,
    cond: Any,
    uncond: Any = None,
    scale: float = 1.0,
    schedule: Schedule,
    steps: int = 50,
    iterations: int = 1,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """The x_T from which `sample(..., sampler="ddim", eta=0)` with the same steps returns to z_0.

    A sampling step from z at t down to z_next needs the noise at z, which inversion does not know
    yet. One iteration takes the noise at z_next instead (the usual DDIM inversion, exact in the
    limit of many steps); each further one calls the network again at the z just found, which
    converges to the step's exact inverse where the step is a contraction.

    Args:
        eps, cond, uncond, scale, schedule, steps, progress: as in `sample`.
        z_0: (B, ...) scaled latents.
        iterations: network calls a step, at least 1.
        callback: called once a step; `state.t` rises from 0.

    Returns: (B, ...) in z_0's dtype, at the noise level of the highest of the chosen timesteps.
    """
    if iterations < 1:
        raise UserError(f"iterations must be 1 or more, not {iterations}")
    at = bind(eps, cond, uncond, scale)

    def step(z: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        z_next = z
        for _ in range(iterations):
            e = at(z_next, move.t_next)
            z_next = move.ddim(z, e)
        return z_next, move.x0(z, e)

    path = [move.reversed() for move in reversed(moves(schedule, steps))]
    return drive(step, z_0, path, callback, progress, "inverting")
