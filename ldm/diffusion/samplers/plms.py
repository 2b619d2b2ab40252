"""PLMS (Liu et al. 2022, PNDM, arXiv 2202.09778): linear multistep on eps, moved by DDIM's rule."""

from __future__ import annotations

from torch import Tensor

from ldm.diffusion.samplers.base import EpsAt, Move


class PLMS:
    """Fourth order once three earlier noises are known; deterministic.

    The first step is improved Euler (a trial step and a second call at its end), so n steps cost
    n + 1 calls. Orders 2 to 4 are Adams-Bashforth (PNDM Eq. 9 for the fourth).
    """

    def __init__(self) -> None:
        self.history: list[Tensor] = []

    def step(self, eps: EpsAt, z_t: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        """(z at move.t_next, estimate of x0) from z_t (B, ...)."""
        e = eps(z_t, move.t)
        match self.history:
            case []:
                slope = (e + eps(move.ddim(z_t, e), move.t_next)) / 2
            case [e1]:
                slope = (3 * e - e1) / 2
            case [e2, e1]:
                slope = (23 * e - 16 * e1 + 5 * e2) / 12
            case [e3, e2, e1]:
                slope = (55 * e - 59 * e1 + 37 * e2 - 9 * e3) / 24
        self.history = [*self.history[-2:], e]
        return move.ddim(z_t, slope), move.x0(z_t, slope)
