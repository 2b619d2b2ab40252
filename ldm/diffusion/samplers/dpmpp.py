"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095): Algorithm 2, on x0, second order."""

from __future__ import annotations

from torch import Tensor

from ldm.diffusion.samplers.base import EpsAt, Move

_MAX_GAIN = 2.0


class DPMSolverPP2M:
    """Second order from the second step on, one call a step; deterministic.

    The first step has no history and is DPM-Solver++(1), which is DDIM. So is a step over which
    lambda grows by more than 2: evenly spaced timesteps, when few (12 or less in the default
    schedule), end in such a jump, and a line through the last two x0 overshoots there.
    """

    def __init__(self) -> None:
        self.x0: Tensor | None = None
        self.gain = 0.0

    def step(self, eps: EpsAt, z_t: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        """(z at move.t_next, estimate of x0) from z_t (B, ...)."""
        e = eps(z_t, move.t)
        x0, gain = move.x0(z_t, e), move.gain
        z_next = move.ddim(z_t, e)
        if self.x0 is not None and gain <= _MAX_GAIN:
            # alpha_next (1 - exp(-h)) D of Algorithm 2, less its first-order part; h / (2 h_last)
            # is the paper's 1 / (2 r)
            weight = move.alpha_next - move.alpha * move.sigma_next / move.sigma
            z_next = z_next + weight * gain / (2 * self.gain) * (x0 - self.x0)
        self.x0, self.gain = x0, gain
        return z_next, x0
