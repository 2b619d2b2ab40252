"""What a denoiser is pretrained on: latents that were encoded once, or pictures drawn anew each step."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ldm.pretraining.bank import LatentBank
from ldm.pretraining.sources import UNNAMED, PictureSource
from ldm.text.conditioner import TextConditioner


class Examples(Protocol):
    """Batches as a pure function of (step, seed).

    Attributes:
        shares: (M,) float32, how often each of M things is drawn; only the ratios count.
    """

    shares: Tensor

    def hides_names(self) -> bool:
        """Whether captions leave out names (``ldm.pretraining.sources.UNNAMED``)."""
        ...

    def batch(self, step: int, n: int, seed: int, text: TextConditioner) -> tuple[Tensor, Tensor, Tensor]:
        """Latents or pictures, caption ids (n, L) and things (n,).

        The first is (n, C, h, w) float32 unscaled latents, or (n, 3, S, S) uint8 pictures to encode.
        """
        ...

    def portraits(self, autoencoder: nn.Module, device: torch.device | str) -> Tensor:
        """Latents (M, 2, C, h, w) float16 of each thing's two portraits, on ``device``."""
        ...

    def scale_factor(self, autoencoder: nn.Module) -> float:
        """1 / standard deviation of the sampled latents (Rombach et al. 2022, appendix G)."""
        ...


class BankExamples:
    """Examples from files that ``ldm train latents`` wrote."""

    def __init__(self, bank: LatentBank) -> None:
        self.bank = bank
        self.shares = torch.bincount(bank.subjects, minlength=len(bank.portraits)).float()
        self._ids: Tensor | None = None

    @classmethod
    def load(cls, *paths: Path | str) -> BankExamples:
        """As :meth:`LatentBank.load`."""
        return cls(LatentBank.load(*paths))

    def hides_names(self) -> bool:
        return any(UNNAMED in caption for caption in self.bank.captions)

    def batch(self, step: int, n: int, seed: int, text: TextConditioner) -> tuple[Tensor, Tensor, Tensor]:
        if self._ids is None:
            self._ids = text.tokenize(self.bank.captions).to(torch.int32)
        z, rows = self.bank.batch(step, n, seed)
        return z, self._ids[rows].long(), self.bank.subjects[rows]

    def portraits(self, autoencoder: nn.Module, device: torch.device | str) -> Tensor:
        return self.bank.portraits.to(device)

    def scale_factor(self, autoencoder: nn.Module) -> float:
        return self.bank.scale_factor


class DrawnExamples:
    """Pictures of ``source``, drawn anew each step and encoded while training.

    No picture comes twice, and a linear encoder costs nothing. Pictures travel as bytes, which is what
    a picture file would hold.
    """

    CHUNK = 256

    def __init__(self, source: PictureSource) -> None:
        self.source, self.shares = source, source.shares

    def hides_names(self) -> bool:
        return any(UNNAMED in caption for caption in self.source.batch(0, 4 * self.CHUNK, -1).captions)

    def batch(self, step: int, n: int, seed: int, text: TextConditioner) -> tuple[Tensor, Tensor, Tensor]:
        images, captions, subjects = self.source.batch(step, n, seed)
        return to_bytes(images), text.tokenize(captions), subjects

    @torch.no_grad()
    def portraits(self, autoencoder: nn.Module, device: torch.device | str) -> Tensor:
        autoencoder.to(device)
        return torch.cat([
            autoencoder.encode(pair.flatten(0, 1).to(device)).mean.half().unflatten(0, (-1, 2))
            for pair in self.source.portraits(self.CHUNK)
        ])  # fmt: skip

    @torch.no_grad()
    def scale_factor(self, autoencoder: nn.Module) -> float:
        latents = [
            autoencoder.encode(self.source.batch(step, self.CHUNK, -1).images).sample(
                torch.Generator().manual_seed(step)
            )
            for step in range(4)
        ]
        return float(1 / torch.cat(latents).std())


def to_bytes(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8, rounded to the nearest of 256 levels."""
    return images.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """What :func:`to_bytes` made, as float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)
