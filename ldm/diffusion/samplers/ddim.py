"""DDIM (Song et al. 2021, arXiv 2010.02502): Eq. 12, with the noise of Eq. 16."""

from __future__ import annotations

import math

from torch import Tensor

from ldm.diffusion.samplers.base import EpsAt, Generators, Move, randn
from ldm.errors import UserError


class DDIM:
    """First order; deterministic at eta 0, the DDPM posterior's variance at eta 1.

    Args:
        eta: 0 to 1, share of the ancestral noise.
        generator: source of that noise, one for the batch or a list of one per row.
    """

    def __init__(self, eta: float = 0.0, generator: Generators = None) -> None:
        if not 0 <= eta <= 1:
            raise UserError(f"eta must be 0 to 1, not {eta}")
        self.eta = eta
        self.generator = generator

    def std(self, move: Move) -> float:
        """sigma_t of Eq. 16; 0 for the last of T steps, which stays at timestep 0."""
        fresh = 1 - (move.alpha / move.alpha_next) ** 2
        return self.eta * move.sigma_next / move.sigma * math.sqrt(fresh)

    def step(self, eps: EpsAt, z_t: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        """(z at move.t_next, estimate of x0) from z_t (B, ...)."""
        e, std = eps(z_t, move.t), self.std(move)
        z_next = move.ddim(z_t, e, std)
        if std > 0:
            z_next = z_next + std * randn(z_t, self.generator)
        return z_next, move.x0(z_t, e)
