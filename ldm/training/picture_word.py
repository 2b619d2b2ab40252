"""A word read off a picture, so that a denoiser learns to draw what its vocabulary does not name.

In part of the captions the thing's name is hidden, and its place is taken by the vector that a small
network makes of *another* picture of the same thing (as in E4T, Gal et al. 2023, arXiv 2302.12228, but
while the base model is trained). UNet and text conditioner so learn a word space that is filled between
its named points, which is where Textual Inversion looks for v*. The network is an aid of training alone:
it is not part of the exported model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm.data.pictures import UNNAMED
from ldm.text.conditioner import TextConditioner


class PictureWord(nn.Module):
    """Latents (n, C, h, w) of pictures, scaled, to token embeddings (n, D).

    Args:
        text: whose words it makes; it starts at the mean of the token table.
        latent_shape: (C, h, w).
        width: of the convolutions.
    """

    def __init__(
        self, text: TextConditioner, latent_shape: tuple[int, int, int], width: int = 96
    ) -> None:
        super().__init__()
        channels, height, wide = latent_shape
        self.token_id = text.tokenizer.add_placeholder(UNNAMED)
        self.net = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * width * _halved(height) * _halved(wide), 2 * text.width),
            nn.SiLU(),
        )
        self.out = nn.Linear(2 * text.width, text.width)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(text.token_table.mean(0))

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.net(z))

    def put(self, ids: Tensor, embeds: Tensor, z: Tensor) -> Tensor:
        """``embeds`` (n, L, D) of ``ids`` (n, L) with the words of pictures ``z`` where one is hidden."""
        return torch.where((ids == self.token_id)[..., None], self(z)[:, None], embeds)


def _halved(side: int) -> int:
    return (side + 1) // 2
