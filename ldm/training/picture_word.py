"""Words made of pictures, so that a denoiser learns to draw what its vocabulary does not name.

In part of the captions the thing's name is hidden, and its place is taken by codes of the thing's
portraits: principal components of their latents. (unCLIP, Ramesh et al. 2022, also tells a denoiser by a
picture's vector what to draw, beside the text; here they are words in a sentence.) UNet and text
conditioner so learn a word space in which every point is a thing and neighbours look alike, named or not:
there Textual Inversion can find v*. Nothing of this is part of the exported model.

Either one word tells the whole thing, or four tell its quarters, top left first. Four are the stronger:
the corner of a thing never seen is more like corners that were seen than the whole is like any whole
thing. A word of the user's own may have four vectors as well (``num_vectors``).

The codes are computed, not learned: a convolutional network on another picture of the thing, trained along
with the denoiser, kept to a few directions, while principal components hold nearly all of the portraits
of things that had no part in them (``benchmarks/base_model.py``).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.bank import LatentBank
from ldm.data.pictures import UNNAMED
from ldm.seeding import generator
from ldm.text.conditioner import TextConditioner

QUARTERS = ("<top-left>", "<top-right>", "<bottom-left>", "<bottom-right>")
SHARE_IN_QUARTERS = 0.75  # of the captions that hide a name


class PictureWords(nn.Module):
    """Token embeddings for every thing of ``bank``: its attribute ``words`` (M, 5, D), the whole one first.

    Not trained, not saved.
    """

    words: Tensor

    def __init__(self, text: TextConditioner, bank: LatentBank) -> None:
        super().__init__()
        self.token_ids = [text.tokenizer.add_placeholder(name) for name in (UNNAMED, *QUARTERS)]
        portraits, subjects = bank.portraits.float(), bank.subjects
        whole = half_whitened(portraits.flatten(1), subjects, text.width)
        corners = quarters(portraits)
        rows = (4 * subjects[:, None] + torch.arange(4)).flatten()
        codes = half_whitened(corners.flatten(0, 1), rows, text.width).unflatten(0, (-1, 4))
        codes = torch.cat([whole[:, None], codes], 1)
        # as long as the table's words: the conditioner normalises its input, so only direction would tell
        length = text.token_table.detach().float().square().mean().sqrt()
        self.register_buffer("words", length * F.layer_norm(codes, codes.shape[2:]), persistent=False)

    def spell(self, captions: list[str], seed: int) -> list[str]:
        """Captions in which most hidden names, drawn with ``seed``, are spelled in quarters."""
        rng = generator(seed, "quarters")
        chosen = (torch.rand(len(captions), generator=rng) < SHARE_IN_QUARTERS).tolist()
        four = " ".join(QUARTERS)
        return [c.replace(UNNAMED, four) if q else c for c, q in zip(captions, chosen, strict=True)]

    def put(self, ids: Tensor, embeds: Tensor, subjects: Tensor) -> Tensor:
        """``embeds`` (n, L, D) of ``ids`` (n, L) with the words of things ``subjects`` (n,) where hidden."""
        for place, token_id in enumerate(self.token_ids):
            word = self.words[subjects, place][:, None]
            embeds = torch.where((ids == token_id)[..., None], word, embeds)
        return embeds


def quarters(portraits: Tensor) -> Tensor:
    """Latents (M, 2, C, h, w) of portraits, cut into quarters as :data:`QUARTERS` says: (M, 4, 2 C h/2 w/2)."""
    return rearrange(portraits, "m n c (i y) (j x) -> m (i j) (n c y x)", i=2, j=2)


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
