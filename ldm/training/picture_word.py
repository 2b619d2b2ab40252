"""Words made of pictures, so that a denoiser learns to draw what its vocabulary does not name.

In part of the captions the thing's name is hidden, and its place is taken by a code of the thing's
portraits: their latents' principal components. (unCLIP, Ramesh et al. 2022, also tells a denoiser by a
picture's vector what to draw, beside the text; here it is one word in a sentence.) UNet and text
conditioner so learn a word space in which every point is a thing and neighbours look alike, named or not:
there Textual Inversion can find v*. Nothing of this is part of the exported model.

The code starts as principal components, which hold nearly all of the portraits of things that had no part
in them (``benchmarks/base_model.py``). A network that is trained along with the denoiser moves it to where
the denoiser can use it: from components alone it draws even its own things worse than by their names. A
network without the components keeps to a few directions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.pictures import UNNAMED
from ldm.models.layers import zero_init
from ldm.seeding import generator
from ldm.text.conditioner import TextConditioner

#: of the network: principal components that it reads, and its width
DETAILS, HIDDEN = 512, 1024


class PictureWords(nn.Module):
    """A token embedding for every thing, read off its portraits.

    The axes of the components are kept with the network, so that a stage that goes on with other things
    reads them as the one before did.

    Args:
        text: the conditioner whose vocabulary gets the hidden name.
        portraits: (M, 2, C, h, w) latents of the portraits of M things, on any device.
        shares: (M,) how often each thing is drawn; only the ratios count.
    """

    centre: Tensor
    axes: Tensor
    spread: Tensor
    length: Tensor
    start: Tensor
    details: Tensor

    def __init__(self, text: TextConditioner, portraits: Tensor, shares: Tensor) -> None:
        super().__init__()
        self.width = text.width
        self.token_id = text.tokenizer.add_placeholder(UNNAMED)
        flat, table = portraits.flatten(1).float(), text.token_table.detach().float()
        centre, axes = half_whitening(flat, shares, DETAILS)
        spread = ((flat - centre) @ axes).square().mean().sqrt()
        self.register_buffer("centre", centre)
        self.register_buffer("axes", axes)
        self.register_buffer("spread", spread.clamp(min=1e-6))  # one thing alone has none
        self.register_buffer("length", table.square().mean().sqrt())
        self.net = nn.Sequential(
            nn.Linear(DETAILS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
            zero_init(nn.Linear(HIDDEN, text.width)),
        )  # fmt: skip
        self.to(portraits.device).read(portraits)

    def read(self, portraits: Tensor) -> None:
        """Take these things now, portraits (M, 2, C, h, w). Their components follow from the portraits; no
        checkpoint has them."""
        components = (portraits.flatten(1).float() - self.centre) @ self.axes
        turned = components[:, : self.width] @ rotation(self.width).to(components)
        start = F.layer_norm(turned, (self.width,))
        details = components @ rotation(DETAILS).to(components) / self.spread
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("details", details, persistent=False)

    def words(self, subjects: Tensor) -> Tensor:
        """Token embeddings (n, D) of things (n,), as long as those of the table: the conditioner normalises
        its input, so that only direction would tell."""
        moved = self.start[subjects] + self.net(self.details[subjects]).float()
        return self.length * F.layer_norm(moved, moved.shape[1:])

    def put(self, ids: Tensor, embeds: Tensor, subjects: Tensor) -> Tensor:
        """``embeds`` (n, L, D) of ``ids`` (n, L) with the words of things ``subjects`` (n,) where hidden."""
        return torch.where((ids == self.token_id)[..., None], self.words(subjects)[:, None], embeds)


def half_whitening(x: Tensor, shares: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Centre (F,) and axes (F, width) of the principal components of x (M, F), each over the square root of
    its deviation.

    So the leading ones lead less than in the pictures, and the last ones are not blown up to noise. Rows
    count by their ``shares`` (M,); where there are fewer than ``width`` the other axes are empty.
    """
    share = (shares.to(x) / shares.sum().to(x))[:, None]
    centre = (share * x).sum(0)
    centred = x - centre
    variance, axes = torch.linalg.eigh(centred.T @ (share * centred))
    variance, axes = variance.flip(0)[:width], axes.flip(1)[:, :width]
    kept = variance > 1e-6 * variance[0]
    axes = axes[:, kept] * variance[kept] ** -0.25
    return centre, F.pad(axes, (0, width - axes.shape[1]))


def rotation(width: int) -> Tensor:
    """A fixed orthogonal matrix, to spread components over the coordinates: optimisers treat those alike."""
    square = torch.randn(width, width, generator=generator(0, "picture words"))
    return torch.linalg.qr(square)[0]
