"""Words made of pictures, so that a denoiser learns to draw what its vocabulary does not name.

In part of the captions the thing's name is hidden, and its place is taken by a code of the thing's
portraits: their latents' principal components. (unCLIP, Ramesh et al. 2022, also tells a denoiser by a
picture's vector what to draw, beside the text; here it is one word in a sentence.) UNet and text
conditioner so learn a word space in which every point is a thing and neighbours look alike, named or not:
there Textual Inversion can find v*. Nothing of this is part of the exported model.

The code is computed, not learned: a convolutional network on another picture of the thing, trained along
with the denoiser, kept to a few directions, while principal components hold nearly all of the portraits
of things that had no part in them (``benchmarks/base_model.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.bank import LatentBank
from ldm.data.pictures import UNNAMED
from ldm.seeding import generator
from ldm.text.conditioner import TextConditioner


class PictureWords(nn.Module):
    """A token embedding for every thing of ``bank``: its attribute ``words`` (M, D).

    Not trained, not saved.
    """

    words: Tensor

    def __init__(self, text: TextConditioner, bank: LatentBank) -> None:
        super().__init__()
        self.token_id = text.tokenizer.add_placeholder(UNNAMED)
        codes = half_whitened(bank.portraits.flatten(1).float(), bank.subjects, text.width)
        # as long as the table's words: the conditioner normalises its input, so only direction would tell
        length = text.token_table.detach().float().square().mean().sqrt()
        self.register_buffer("words", length * F.layer_norm(codes, codes.shape[1:]), persistent=False)

    def put(self, ids: Tensor, embeds: Tensor, subjects: Tensor) -> Tensor:
        """``embeds`` (n, L, D) of ``ids`` (n, L) with the words of things ``subjects`` (n,) where hidden."""
        return torch.where((ids == self.token_id)[..., None], self.words[subjects][:, None], embeds)


def half_whitened(x: Tensor, rows: Tensor, width: int) -> Tensor:
    """The first principal components of x (M, F), each over the square root of its deviation: (M, width).

    So the leading ones lead less than in the pictures, and the last ones are not blown up to noise. A fixed
    rotation spreads them over the coordinates, since optimisers treat those alike. Rows count as often as
    ``rows`` names them; where there are fewer than ``width`` components the others are empty.
    """
    share = torch.bincount(rows, minlength=len(x)).float()[:, None] / len(rows)
    centred = x - (share * x).sum(0)
    variance, axes = torch.linalg.eigh(centred.T @ (share * centred))
    variance, axes = variance.flip(0)[:width], axes.flip(1)[:, :width]
    kept = variance > 1e-6 * variance[0]
    components = centred @ (axes[:, kept] * variance[kept] ** -0.25)
    square = torch.randn(width, width, generator=generator(0, "picture words"))
    return components @ torch.linalg.qr(square)[0][: components.shape[1]]
