"""Latents of a concept, encoded once, and the batches drawn from them.

z = scale_factor (mean + std noise), with mean and std of the autoencoder's posterior for every
picture (and its mirror image). Encoding is a fifth to a third of a step in tools that repeat it.

A batch is a pure function of (seed, concept, step): a resumed run sees what it would have seen,
and what a concept learns does not depend on what is trained beside it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from rich.progress import track
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm.errors import UserError
from ldm.inversion.captions import PromptSource
from ldm.inversion.masks import ConceptMasks
from ldm.io.atomic import atomic_write
from ldm.io.files import native
from ldm.io.tensors import save_tensors
from ldm.seeding import generator

log = logging.getLogger(__name__)

CACHE_VERSION = 1


class Posterior(Protocol):
    """What an encoder gives: a diagonal Gaussian over latents (B, C, h, w)."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def std(self) -> Tensor: ...


Encode = Callable[[Tensor], Posterior]


@dataclass(frozen=True, eq=False)
class LatentCache:
    """mean, std: (V, N, C, h, w) float32, unscaled; V = 2 where mirrored pictures are kept."""

    mean: Tensor
    std: Tensor
    scale_factor: float

    def __post_init__(self) -> None:
        if not (self.mean.isfinite().all() and self.std.isfinite().all()):
            raise UserError(
                "the autoencoder gives values that are not finite for these pictures: "
                "encode in float32, or check its checkpoint"
            )

    def __len__(self) -> int:
        return self.mean.shape[1]

    @property
    def mirrored(self) -> bool:
        """Whether flipped pictures can be drawn."""
        return self.mean.shape[0] == 2

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of one latent."""
        return tuple(self.mean.shape[2:])

    def to(self, device: torch.device | str) -> LatentCache:
        """The same cache on another device, where :meth:`sample` then returns its latents."""
        return LatentCache(self.mean.to(device), self.std.to(device), self.scale_factor)

    def sample(self, indices: Tensor, flip: Tensor, generator: torch.Generator) -> Tensor:
        """z (B, C, h, w) float32, scaled, for pictures ``indices`` (B,), mirrored where ``flip``.

        The noise is drawn where the generator lives, so a CPU generator gives the same latents
        on every device. ValueError if a flip is asked of a cache without mirrored pictures.
        """
        if not self.mirrored and bool(flip.any()):
            raise ValueError("this cache holds no mirrored pictures: build it with mirror=True")
        rows, view = indices.to(self.mean.device), flip.long().to(self.mean.device)
        noise = torch.randn(len(indices), *self.shape, generator=generator, device=generator.device).to(
            self.mean.device
        )
        return (self.mean[view, rows] + self.std[view, rows] * noise) * self.scale_factor


@torch.no_grad()
def encode_latents(
    encode: Encode,
    images: Tensor,
    *,
    scale_factor: float,
    mirror: bool,
    batch_size: int = 8,
    progress: bool = False,
) -> LatentCache:
    """Encodes ``images`` (N, 3, S, S) in [-1, 1] once, and mirrored too if ``mirror``.

    encode: unscaled posterior of a batch on the images' device. The cache is on the CPU. progress:
    a bar, for large sets. :class:`UserError` if what comes out is not finite.
    """
    views = [images, images.flip(-1)] if mirror else [images]
    chunks = [chunk for view in views for chunk in view.split(batch_size)]
    means, stds = [], []
    for chunk in track(chunks, "encoding pictures", disable=not progress):
        posterior = encode(chunk)
        means.append(posterior.mean.float().cpu())
        stds.append(posterior.std.float().cpu())
    mean, std = torch.cat(means), torch.cat(stds).expand(torch.cat(means).shape)
    shape = (len(views), len(images), *mean.shape[1:])
    return LatentCache(mean.reshape(shape), std.reshape(shape), scale_factor)


def cached_latents(
    encode: Encode,
    images: Tensor,
    *,
    scale_factor: float,
    mirror: bool,
    folder: Path | str,
    fingerprint: str,
    batch_size: int = 8,
    progress: bool = False,
) -> LatentCache:
    """:func:`encode_latents`, kept in ``folder`` from run to run.

    The file is named by the sha256 of the pixels (and so of files, size, crop and background), the
    base model's ``fingerprint`` and ``mirror``; a broken file is made again. Written atomically;
    :class:`UserError` if it cannot be written.
    """
    pixels = hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()
    key = f"{CACHE_VERSION} {pixels} {tuple(images.shape)} {images.dtype} {fingerprint} {mirror}"
    path = Path(folder) / f"latents-{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    kept = _read_cache(path, key, scale_factor)
    if kept is not None:
        return kept
    cache = encode_latents(
        encode, images, scale_factor=scale_factor, mirror=mirror, batch_size=batch_size, progress=progress
    )
    with atomic_write(path) as temporary:
        save_tensors(
            {"mean": cache.mean.contiguous(), "std": cache.std.contiguous()}, temporary, {"key": key}
        )
    return cache


def _read_cache(path: Path, key: str, scale_factor: float) -> LatentCache | None:
    """The cache in ``path`` if it is whole and belongs to ``key``, else None."""
    if not path.is_file():
        return None
    try:
        with native(path) as name, safe_open(name, framework="pt") as handle:
            if (handle.metadata() or {}).get("key") == key:
                mean, std = handle.get_tensor("mean"), handle.get_tensor("std")
                return LatentCache(mean, std, scale_factor)
    except (SafetensorError, OSError, UserError):
        pass
    log.warning("the latents in %s are broken: encoding the pictures again", path)
    return None


class Batch(TypedDict):
    """z: (B, C, h, w) scaled latents; image_index: (B,) int64; prompt: B strings; mask: (B, 1, h, w), where
    the loss counts, ``None`` for everywhere; areas: (B, W, r, r), where the prompt's words are, if that is
    compared with anything."""

    z: Tensor
    image_index: Tensor
    prompt: list[str]
    mask: Tensor | None
    areas: Tensor | None


class ConceptBatches:
    """The endless batches of one concept; ``batch(step)`` depends on its arguments alone.

    Pictures come in shuffled rounds, so that after N draws each was drawn once. ``step`` counts
    batches: with gradient accumulation that is micro-batches, not optimiser steps. concept names
    the generators (the placeholder, say); flip_p is the probability of a mirrored picture; masks say where
    the pictures count.
    """

    def __init__(
        self,
        cache: LatentCache,
        prompts: PromptSource,
        *,
        batch_size: int,
        seed: int,
        concept: str,
        flip_p: float = 0.5,
        masks: ConceptMasks | None = None,
    ) -> None:
        if batch_size < 1 or len(cache) < 1:
            raise UserError(f"batches of {batch_size} from {len(cache)} pictures cannot be drawn")
        if flip_p > 0 and not cache.mirrored:
            raise ValueError("flip_p > 0 needs latents built with mirror=True")
        own = (("captions", prompts.captions), ("words", prompts.image_tokens), ("masks", masks))
        for name, given in own:
            if given is not None and len(given) != len(cache):
                raise UserError(f"{len(cache)} pictures need as many {name}, got {len(given)}")
        self.cache = cache
        self.prompts = prompts
        self.batch_size = batch_size
        self.seed = seed
        self.concept = concept
        self.flip_p = flip_p
        self.masks = masks

    def image_indices(self, step: int) -> Tensor:
        """(B,) int64: which pictures batch ``step`` shows."""
        first, n = step * self.batch_size, len(self.cache)
        rounds = {place // n for place in range(first, first + self.batch_size)}
        order = {
            r: torch.randperm(n, generator=generator(self.seed, self.concept, "order", r)) for r in rounds
        }
        return torch.stack([order[place // n][place % n] for place in range(first, first + self.batch_size)])

    def batch(self, step: int) -> Batch:
        """Batch number ``step`` >= 0: pictures, mirroring, prompts and posterior noise."""
        indices = self.image_indices(step)
        rng = generator(self.seed, self.concept, "batch", step)
        flip = torch.rand(self.batch_size, generator=rng) < self.flip_p
        prompts = self.prompts.prompts(indices.tolist(), rng)
        z = self.cache.sample(indices, flip, rng)
        where = indices, flip, prompts
        mask = None if self.masks is None else self.masks.mask(*where)
        areas = None if self.masks is None else self.masks.areas(*where)
        return {"z": z, "image_index": indices, "prompt": prompts, "mask": mask, "areas": areas}
