"""Starting from a picture: SDEdit (Meng et al. 2022, arXiv 2108.01073), and blended latent diffusion.

Blended latent diffusion (Avrahami et al. 2023, arXiv 2206.02779) is how the paper paints S* into a
mask (Gal et al. 2022, Sec. 4.6): whatever a sampler does inside the mask, outside it the latents
are those of the source at every noise level of the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm.diffusion.samplers.base import Move
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError


def last_moves(path: Sequence[Move], strength: float) -> Sequence[Move]:
    """The share `strength` of the way down that is left to go, at least one step.

    Raises UserError unless 0 < strength <= 1.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength must be above 0 and at most 1, not {strength}")
    return path[-max(1, round(strength * len(path))) :]


@dataclass(frozen=True)
class Blend:
    """The source of a picture along the way of one sampling run.

    Attributes:
        schedule: whose levels the way has.
        z_0: (B, ...) or (1, ...) scaled latents of the source.
        noise: (B, ...) standard normal; one draw for all levels, so that the source comes down a
            straight line instead of trembling beside what is painted.
        mask: 1 where to paint, 0 where to keep the source, broadcast against z_0; None paints all.
    """

    schedule: Schedule
    z_0: Tensor
    noise: Tensor
    mask: Tensor | None = None

    def source(self, t: int) -> Tensor:
        """The source at the level of timestep t; at 0, where every way ends, free of noise."""
        if t == 0:
            return self.z_0.to(self.noise)
        abar = self.schedule.abar(t)
        return math.sqrt(abar) * self.z_0.to(self.noise) + math.sqrt(1 - abar) * self.noise

    def start(self, t: int, strength: float) -> Tensor:
        """z_t to start from: the noised source, or at strength 1 noise that knows nothing of it."""
        return self(self.noise if strength == 1 else self.source(t), t)

    def __call__(self, z_t: Tensor, t: int) -> Tensor:
        """z_t (B, ...) inside the mask, the source outside."""
        if self.mask is None:
            return z_t
        mask = self.mask.to(z_t)
        return mask * z_t + (1 - mask) * self.source(t)
