"""The training loss of a denoiser: simple, variational, and weighted per timestep.

Everything is kept per sample, so that a batch made of several concepts can be summed by concept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.diffusion.schedule import Schedule, check_parameterization
from ldm.errors import UserError


@dataclass(frozen=True)
class LossTerms:
    """What one batch of B samples costs; float32.

    Attributes:
        per_sample: (B,) the weighted loss, whose mean is `total`.
        simple: (B,) mean squared error in the network's own parameterization, without the timestep's weight.
        vlb: (B,) the sample's term of the variational bound, in nats per dimension.
        total: scalar, what is trained on.
    """

    per_sample: Tensor
    simple: Tensor
    vlb: Tensor
    total: Tensor


class DiffusionLoss(nn.Module):
    """Weighted denoising loss of one schedule and one parameterization.

    Per sample, with mse_t the mean squared error over channels and positions, or under a mask m the mean that
    is weighted by it, sum(m error^2) / (channels sum(m)):

        l_simple_weight (w_t mse_t / exp(s_t) + s_t) + original_elbo_weight vlb_t

    - mse_t: L_simple (DDPM, Ho et al. 2020, Eq. 14); Rombach et al. 2022, Eq. 3.
    - vlb_t: KL(q(z_{t-1} | z_t, z) || p(z_{t-1} | z_t)) (DDPM Eq. 5), through the error in x0, the
      same for every parameterization: (SNR(t-1) - SNR(t)) / 2 mse(x0) (Kingma et al. 2021, Eq. 14).
    - s_t: log-variance of timestep t (LDM's `logvar`), fixed or learnt; 0 changes nothing.
    - w_t: min-SNR-gamma (Hang et al. 2023, Sec. 3.4), 1 where `min_snr_gamma` is None.

    Args:
        schedule: tables of the forward process, shared, not owned.
        parameterization: what the network returns: "eps", "v" or "x0".
        l_simple_weight, original_elbo_weight: at least 0; LDM uses 1 and 0.
        logvar_init: initial s_t of every timestep.
        learn_logvar: make `logvar` (T,) a parameter.
        min_snr_gamma: gamma > 0 (the paper uses 5), or None for no weighting.
    """

    logvar: Tensor

    def __init__(
        self,
        schedule: Schedule,
        parameterization: str = "eps",
        l_simple_weight: float = 1.0,
        original_elbo_weight: float = 0.0,
        logvar_init: float = 0.0,
        learn_logvar: bool = False,
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        if l_simple_weight < 0 or original_elbo_weight < 0:
            raise UserError("l_simple_weight and original_elbo_weight must be 0 or more")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise UserError(f"min_snr_gamma must be more than 0 or null, not {min_snr_gamma}")
        self.schedule = schedule
        self.parameterization = check_parameterization(parameterization)
        self.l_simple_weight = l_simple_weight
        self.original_elbo_weight = original_elbo_weight
        self.min_snr_gamma = min_snr_gamma
        logvar = torch.full((schedule.num_timesteps,), float(logvar_init))
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=False)

    def extra_repr(self) -> str:
        return (
            f"{self.parameterization}, simple={self.l_simple_weight}, "
            f"elbo={self.original_elbo_weight}, min_snr_gamma={self.min_snr_gamma}"
        )

    def min_snr_weight(self, t: Tensor) -> Tensor:
        """w_t of timesteps (B,), as (B,): the weight min(SNR, gamma) of the error in x0, said as a
        weight of the error in what the network returns (Hang et al. 2023, Sec. 3.4 and App. A)."""
        snr = self.schedule.snr(t)
        if self.min_snr_gamma is None:
            return torch.ones_like(snr)
        weight = snr.clamp(max=self.min_snr_gamma)
        if self.parameterization == "eps":  # |eps error|^2 = SNR |x0 error|^2
            return weight / snr
        if self.parameterization == "v":  # |v error|^2 = (SNR + 1) |x0 error|^2
            return weight / (snr + 1)
        return weight

    def forward(
        self, out: Tensor, z: Tensor, z_t: Tensor, t: Tensor, noise: Tensor, mask: Tensor | None = None
    ) -> LossTerms:
        """Loss of a network's output.

        Args:
            out: (B, ...) the network's output for (z_t, t), any floating dtype.
            z: (B, ...) clean latents.
            z_t: (B, ...) `schedule.q_sample(z, t, noise)`.
            t: (B,) int64 in 0 .. T-1.
            noise: (B, ...) the standard normal noise in z_t.
            mask: (B, 1, ...) how much each position counts, 0 or more and not 0 everywhere; ``None``: all
                alike, as with ones.
        """
        out, z, z_t, noise = out.float(), z.float(), z_t.float(), noise.float()
        target = self.schedule.target(z, t, noise, self.parameterization)
        weight = None if mask is None else mask.float() / _mean(mask.float()).view(-1, *[1] * (mask.ndim - 1))
        simple = _mean_squares(out - target, weight)
        x0 = self.schedule.to_x0(out, z_t, t, self.parameterization)
        vlb = self.schedule.vlb_weights[t] * _mean_squares(x0 - z, weight)

        logvar = self.logvar[t].float()
        weighted = self.min_snr_weight(t) * simple * torch.exp(-logvar) + logvar
        per_sample = self.l_simple_weight * weighted
        if self.original_elbo_weight:  # not 0 * vlb: an infinite term there would poison the rest
            per_sample = per_sample + self.original_elbo_weight * vlb
        return LossTerms(per_sample, simple, vlb, per_sample.mean())


def _mean_squares(error: Tensor, weight: Tensor | None) -> Tensor:
    """(B, ...) and weights (B, 1, ...), of mean 1 in each sample -> (B,)"""
    squares = error.square()
    return _mean(squares if weight is None else weight * squares)


def _mean(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)"""
    return x.flatten(1).mean(1)
