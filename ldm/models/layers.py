"""Small layers that the UNet and the autoencoder share.

Shapes: images and feature maps are (B, C, H, W), token sequences (B, L, D).
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of diffusion times, cosines first (Ho et al. 2020, section 3.3).

    Args:
        timesteps: (B,) times, integer or fractional, in [0, T).
        dim: width of the result; an odd width ends in a zero column.
        max_period: the longest wavelength divided by 2 pi.

    Returns:
        (B, dim) float32.
    """
    half = dim // 2
    place = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # multiplied before it is divided, as the public models were trained: equal to the bit
    frequencies = torch.exp(-math.log(max_period) * place / half)
    angles = timesteps.float()[:, None] * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm over 32 groups, the count of every public latent-diffusion checkpoint."""
    return nn.GroupNorm(32, channels, eps=eps)


def zero_init(module: M) -> M:
    """Set the parameters of a residual branch's last layer to zero: the block starts as identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class GEGLU(nn.Module):
    """Gated GELU: a linear map to two halves, one gating the other (Shazeer 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
