"""The attention term of Break-A-Scene (Avrahami et al. 2023, arXiv 2305.16311): a word is read where it is.

Of a sample whose prompt names words with masks M_w,

    sum over w of mean((A_w / max A_w - M_w)^2)

with A_w the cross-attention to the word, the mean over its vectors, over heads and over the layers of one
resolution. The authors' is 16 x 16; a UNet that has none there reports at the nearest that it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.device import carry
from ldm.models.unet import UNetModel

#: height and width of the authors' attention maps
SIDE = 16
#: below any maximum of an attention map, and no 0 to divide by
TINY = 1e-12


@dataclass(frozen=True)
class AttentionTerm:
    """What the loss gains by the term.

    Attributes:
        weight: of the term.
        side: r of the layers (r, r) that report.
        token_ids: of the W words, in the order of their areas; -1 for one that no prompt names.
    """

    weight: float
    side: int
    token_ids: tuple[int, ...]


def nearest_side(unet: UNetModel, latent_side: int) -> int:
    """The height of those feature maps with cross-attention that are nearest to 16 in scale, for latents
    ``latent_side`` high; of two that are as near, the larger."""
    sides = {latent_side // factor for factor in unet.attention_factors}
    return min(sides, key=lambda side: (abs(math.log2(side / SIDE)), -side))


def attention_distance(maps: Tensor, ids: Tensor, areas: Tensor, token_ids: Sequence[int]) -> Tensor:
    """The term of each sample, (B,), before it is weighted.

    Args:
        maps: (B, L, r, r) attention to the L positions of each prompt.
        ids: (B, L) tokens of the prompts, a word's on all positions of its vectors; on the host.
        areas: (B, W, r, r) masks in [0, 1]; zeros where a word's place is not known.
        token_ids: of the W words.
    """
    at = ids[:, None, :] == torch.tensor(token_ids)[None, :, None]  # (B, W, L)
    share = carry(at / at.sum(-1, keepdim=True).clamp(min=1), maps.device)
    seen = torch.einsum("b w l, b l h x -> b w h x", share, maps)
    seen = seen / seen.amax((-2, -1), keepdim=True).clamp(min=TINY)
    areas = areas.to(maps)
    known = areas.flatten(2).any(-1) & carry(at.any(-1), maps.device)  # (B, W)
    return ((seen - areas).square().mean((-2, -1)) * known).sum(1)
