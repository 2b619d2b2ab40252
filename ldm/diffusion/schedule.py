"""Noise schedules and the identities that tie z, z_t, eps, v and x0 together.

Forward process (DDPM, Ho et al. 2020, Eq. 4): q(z_t | z) = N(sqrt(abar_t) z, (1 - abar_t) I), with
abar_t = prod_{s <= t} (1 - beta_s). Timesteps are 0 .. T-1; timestep 0 is the least noisy level of
the chain, not clean data. Buffers carry the names of the public LDM and Stable Diffusion
checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ldm.errors import UserError

Parameterization = Literal["eps", "v", "x0"]
Kind = Literal["linear", "sqrt_linear", "sqrt", "cosine"]

_MAX_BETA = 0.999  # Nichol & Dhariwal 2021, Sec. 3.2: no singularity at the end of the chain


def check_parameterization(name: str) -> Parameterization:
    """Return `name` when a network's output can mean it: "eps", "v" or "x0"; else UserError."""
    for known in get_args(Parameterization):
        if name == known:
            return known
    raise UserError(f"unknown parameterization {name!r}: use one of eps, v, x0")


def make_betas(
    kind: str, timesteps: int, linear_start: float, linear_end: float, cosine_s: float = 8e-3
) -> Tensor:
    """Variances beta_t, (T,) float64 on the CPU.

    `kind` has LDM's names: "linear" is linear in sqrt(beta) (diffusers: "scaled_linear"),
    "sqrt_linear" is linear in beta (diffusers: "linear", DDPM), "sqrt" is the root of that, and
    "cosine" is Nichol & Dhariwal 2021, Eq. 17. Raises UserError for an unknown kind.
    """

    def line(start: float, end: float) -> Tensor:
        # the device is named so that a model built on `meta` still has true numbers here
        return torch.linspace(start, end, timesteps, dtype=torch.float64, device="cpu")

    if kind == "linear":
        return line(math.sqrt(linear_start), math.sqrt(linear_end)).square()
    if kind == "sqrt_linear":
        return line(linear_start, linear_end)
    if kind == "sqrt":
        return line(linear_start, linear_end).sqrt()
    if kind == "cosine":
        u = torch.arange(timesteps + 1, dtype=torch.float64, device="cpu") / timesteps
        f = torch.cos((u + cosine_s) / (1 + cosine_s) * math.pi / 2).square()
        return (1 - f[1:] / f[:-1]).clamp(0, _MAX_BETA)
    raise UserError(f"unknown beta schedule {kind!r}: use one of {', '.join(get_args(Kind))}")


def _derive(betas: Tensor) -> dict[str, Tensor]:
    """Every table that follows from the betas, (T,) float64 each."""
    alphas = 1 - betas
    abar = alphas.cumprod(0)
    abar_prev = torch.cat([torch.ones_like(abar[:1]), abar[:-1]])
    # Variance and mean of q(z_{t-1} | z_t, z): DDPM Eq. 7. The variance is 0 at t = 0.
    variance = betas * (1 - abar_prev) / (1 - abar)
    # KL(q(z_{t-1} | z_t, z) || p) = w_t ||z - x0||^2, with w_t = (SNR(t-1) - SNR(t)) / 2
    # (Kingma et al. 2021, Eq. 14). At t = 0 the KL is infinite; like DDPM and LDM, give the last
    # step the weight that t = 1 has for an error in eps.
    snr = abar / (1 - abar)
    vlb = betas[1:] * abar_prev[1:] / (2 * (1 - abar_prev[1:]) * (1 - abar[1:]))
    vlb = torch.cat([vlb[:1] * snr[0] / snr[1], vlb])
    return {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": abar_prev,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": abar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * abar_prev.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - abar_prev) * alphas.sqrt() / (1 - abar),
        "vlb_weights": vlb,
    }


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas whose last step holds no signal (Lin et al. 2024, Alg. 1), (T,) float64.

    sqrt(abar) is shifted so that it ends in 0 and scaled so that it begins as before. The last abar is
    2^-24 in place of 0, as in diffusers, for identities that divide by it.
    """
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root.square()
    abar[-1] = 2.0**-24
    return 1 - torch.cat([abar[:1], abar[1:] / abar[:-1]])


class Schedule(nn.Module):
    """The tables of one discrete noise schedule, and the conversions that need them.

    Tables are float32 buffers computed in float64. They are non-persistent (a checkpoint may or may
    not hold them, they follow from four numbers) and stay float32 under `.half()` or `.to(bf16)`.

    Args:
        timesteps: T, at least 2.
        linear_start, linear_end: first and last beta, in (0, 1); unused by "cosine".
        kind: see `make_betas`. The defaults are those of the public text-to-image checkpoints.
        betas: all T of them, in place of what the other arguments make.
        zero_snr: rescale them by `zero_terminal_snr`.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    vlb_weights: Tensor

    def __init__(
        self,
        timesteps: int = 1000,
        linear_start: float = 0.00085,
        linear_end: float = 0.012,
        kind: str = "linear",
        betas: Sequence[float] = (),
        zero_snr: bool = False,
    ) -> None:
        super().__init__()
        if timesteps < 2:
            raise UserError(f"a schedule needs at least 2 timesteps, not {timesteps}")
        if betas and len(betas) != timesteps:
            raise UserError(f"{len(betas)} betas for {timesteps} timesteps: give one for each")
        given = torch.tensor(betas, dtype=torch.float64, device="cpu") if betas else None
        table = make_betas(kind, timesteps, linear_start, linear_end) if given is None else given
        if not bool(((table > 0) & (table < 1)).all()):
            said = f": linear_start {linear_start}, linear_end {linear_end}" if given is None else ""
            raise UserError(f"betas must lie in (0, 1){said}")
        if zero_snr:
            table = zero_terminal_snr(table)
        self.num_timesteps = timesteps
        self.kind = kind
        self._tables = _derive(table)  # float64, CPU; the buffers are their float32 copies
        for name, table in self._tables.items():
            # the copy goes to the default device, so that a model built on `meta` is all there
            self.register_buffer(name, torch.empty(timesteps), persistent=False)
            self._fill(name, table)

    def _fill(self, name: str, table: Tensor) -> None:
        device = self._buffers[name].device  # type: ignore[union-attr]
        self._buffers[name] = table.to(device=device, dtype=torch.float32)

    def _apply(self, fn: Any, recurse: bool = True) -> Schedule:
        """Follow a move to another device, but not a cast, and survive `to_empty`."""
        super()._apply(fn, recurse)
        for name, table in self._tables.items():
            self._fill(name, table)
        return self

    def extra_repr(self) -> str:
        beta = self._tables["betas"]
        return f"T={self.num_timesteps}, kind={self.kind}, betas={beta[0]:.5g}..{beta[-1]:.5g}"

    def abar(self, t: int) -> float:
        """abar_t in double precision for one timestep: what samplers build coefficients from."""
        return float(self._tables["alphas_cumprod"][t])

    def snr(self, t: Tensor) -> Tensor:
        """abar_t / (1 - abar_t) of timesteps (B,), as (B,) float32."""
        # not from 1 - abar in float32: that loses four digits at small t
        return (self.sqrt_alphas_cumprod[t] / self.sqrt_one_minus_alphas_cumprod[t]).square()

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) of timesteps (B,), as (B, 1, ...) float32."""
        shape = (-1, *(1,) * (like.ndim - 1))
        alpha = self.sqrt_alphas_cumprod[t].reshape(shape)
        return alpha, self.sqrt_one_minus_alphas_cumprod[t].reshape(shape)

    def q_sample(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise (DDPM Eq. 4); z (B,...), t (B,) int64."""
        alpha, sigma = self._alpha_sigma(t, z)
        return (alpha * z + sigma * noise).to(z.dtype)

    def velocity(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """v = sqrt(abar_t) noise - sqrt(1 - abar_t) z (Salimans & Ho 2022, Sec. 4)."""
        alpha, sigma = self._alpha_sigma(t, z)
        return (alpha * noise - sigma * z).to(z.dtype)

    def target(self, z: Tensor, t: Tensor, noise: Tensor, parameterization: str) -> Tensor:
        """What a network of this parameterization is trained to return for z_t; like z."""
        kind = check_parameterization(parameterization)
        if kind == "eps":
            return noise
        return z if kind == "x0" else self.velocity(z, t, noise)

    def to_eps(self, out: Tensor, z_t: Tensor, t: Tensor, parameterization: str) -> Tensor:
        """The noise that a network's output `out` (B,...) means at z_t; in z_t's dtype."""
        kind = check_parameterization(parameterization)
        if kind == "eps":
            return out.to(z_t.dtype)
        alpha, sigma = self._alpha_sigma(t, z_t)
        eps = alpha * out + sigma * z_t if kind == "v" else (z_t - alpha * out) / sigma
        return eps.to(z_t.dtype)

    def to_x0(self, out: Tensor, z_t: Tensor, t: Tensor, parameterization: str) -> Tensor:
        """The clean latents that a network's output `out` (B,...) means at z_t; in z_t's dtype.

        From "v" this has no division, so it stays accurate where the signal is almost gone.
        """
        kind = check_parameterization(parameterization)
        if kind == "x0":
            return out.to(z_t.dtype)
        alpha, sigma = self._alpha_sigma(t, z_t)
        x0 = alpha * z_t - sigma * out if kind == "v" else (z_t - sigma * out) / alpha
        return x0.to(z_t.dtype)
