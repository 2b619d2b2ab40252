"""Patch discriminator for the autoencoder's adversarial term (Isola et al. 2017; Esser et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) to a map of logits (B, 1, h, w), one a patch; GroupNorm, no batch statistics."""

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = [
            nn.Conv2d(3, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        width = channels
        for i in range(1, layers + 1):
            wider = channels * min(2**i, 8)
            stages += [
                nn.Conv2d(width, wider, 4, stride=2 if i < layers else 1, padding=1, bias=False),
                nn.GroupNorm(min(32, wider // 4), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.main = nn.Sequential(*stages, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's hinge loss on logits of real and reconstructed pictures (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Ratio of both gradients' norms at the decoder's last layer (Esser et al. 2021, eq. 7)."""
    grad_rec = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0]
    grad_adv = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    return (grad_rec.norm() / (grad_adv.norm() + 1e-4)).clamp(0.0, 1e4).detach()
