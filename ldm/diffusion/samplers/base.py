"""What all samplers share: which timesteps, one step's coefficients, the loop.

A sampler sees one function, eps(z_t, t) -> noise, already conditioned and guided; whatever a
network returns (eps, v or x0) was converted before. Coefficients are Python floats, derived in
double precision; tensors keep the dtype of x_T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.diffusion.guidance import Eps, guided
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class SamplerState:
    """What a per-step callback sees.

    Attributes:
        i: 0-based index of the step.
        t: timestep whose noise level z_t has.
        z_t: (B, ...) latents before the step. Not a copy: do not write into it.
        x0: (B, ...) the step's estimate of the finished latents.
    """

    i: int
    t: int
    z_t: Tensor
    x0: Tensor


Callback = Callable[[SamplerState], None]


def timesteps(num_timesteps: int, steps: int) -> list[int]:
    """Exactly `steps` distinct timesteps, ascending: leading spacing, offset 1 where it fits.

    10 of 1000 are 1, 101, ..., 901, as in LDM; a count that does not divide T is spread evenly over
    the chain; all T of them are 0 .. T-1. Raises UserError unless 1 <= steps <= T.
    """
    if not 1 <= steps <= num_timesteps:
        raise UserError(f"steps must be 1 to {num_timesteps}, not {steps}")
    offset = int(steps < num_timesteps)
    return [i * num_timesteps // steps + offset for i in range(steps)]


@dataclass(frozen=True)
class Move:
    """From the noise level of timestep `t` to that of `t_next`, along the chain.

    Sampling goes down (t_next < t), inversion goes up. alpha = sqrt(abar), sigma = sqrt(1 - abar).
    """

    t: int
    t_next: int
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float

    @property
    def gain(self) -> float:
        """h = lambda_next - lambda, with lambda = log(alpha / sigma), half the log-SNR."""
        return math.log(self.alpha_next * self.sigma / (self.sigma_next * self.alpha))

    def reversed(self) -> Move:
        """The same way back."""
        return Move(self.t_next, self.t, self.alpha_next, self.sigma_next, self.alpha, self.sigma)

    def x0(self, z_t: Tensor, eps: Tensor) -> Tensor:
        """Estimate of the clean latents (Song et al. 2021, DDIM, Eq. 9)."""
        return (z_t - self.sigma * eps) / self.alpha

    def ddim(self, z_t: Tensor, eps: Tensor, std: float = 0.0) -> Tensor:
        """alpha_next x0 + sqrt(sigma_next^2 - std^2) eps: DDIM Eq. 12 without its noise.

        Said without x0, whose 1 / alpha overflows half precision where the signal is almost gone.
        """
        kept = self.alpha_next / self.alpha
        towards = math.sqrt(max(self.sigma_next**2 - std**2, 0.0)) - kept * self.sigma
        return kept * z_t + towards * eps


def moves(schedule: Schedule, steps: int) -> list[Move]:
    """The way down: from each chosen timestep to the next lower one, the last to timestep 0.

    The end is the level of timestep 0 (alphas_cumprod[0]), as in LDM, not abar = 1.
    """
    grid = [*reversed(timesteps(schedule.num_timesteps, steps)), 0]
    levels = [schedule.abar(t) for t in grid]
    root = [(math.sqrt(abar), math.sqrt(1 - abar)) for abar in levels]
    return [Move(grid[i], grid[i + 1], *root[i], *root[i + 1]) for i in range(steps)]


EpsAt = Callable[[Tensor, int], Tensor]
"""The network, conditioned and guided: (z_t (B, ...), t) -> noise (B, ...), in z_t's dtype."""


def bind(eps: Eps, cond: Any, uncond: Any, scale: float) -> EpsAt:
    """Close the user's eps(z_t, t (B,), cond) over its condition and the guidance scale."""
    f = guided(eps, scale)

    def at(z_t: Tensor, t: int) -> Tensor:
        ts = torch.full((z_t.shape[0],), t, device=z_t.device)
        return f(z_t, ts, cond, uncond).to(z_t.dtype)

    return at


class Sampler(Protocol):
    """One sampling rule; an object is one run, and may remember earlier steps."""

    def step(self, eps: EpsAt, z_t: Tensor, move: Move) -> tuple[Tensor, Tensor]:
        """(z at move.t_next, estimate of x0), (B, ...) both."""
        ...


def drive(
    step: Callable[[Tensor, Move], tuple[Tensor, Tensor]],
    z: Tensor,
    path: Sequence[Move],
    callback: Callback | None,
    progress: bool,
    label: str,
    blend: Callable[[Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Walk `path` from z and return where it ends; call back and show a bar on the way.

    blend(z_t, t) replaces the latents that every step arrives at.
    """
    bar: Iterable[Move] = path
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(path, desc=label, leave=False)
    for i, move in enumerate(bar):
        z_next, x0 = step(z, move)
        if callback is not None:
            callback(SamplerState(i, move.t, z, x0))
        z = blend(z_next, move.t_next) if blend else z_next
    return z


def randn(like: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise shaped as `like` (B, ...), drawn in float32 where the generator lives.

    A list holds one generator a row, so that a row's noise does not depend on its neighbours.
    Raises UserError when a list does not have B entries.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        noise = torch.randn(like.shape, generator=generator, device=device)
    else:
        if len(generator) != like.shape[0]:
            raise UserError(f"{len(generator)} generators for {like.shape[0]} latents: give one each")
        noise = torch.stack([torch.randn(like.shape[1:], generator=g, device=g.device) for g in generator])
    return noise.to(like)
