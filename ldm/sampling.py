"""Prompts to pictures: contexts, classifier-free guidance, a sampler and the decoder in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm import interrupt
from ldm.diffusion import samplers
from ldm.editing import Source
from ldm.errors import UserError
from ldm.model import LatentDiffusion
from ldm.seeding import generator


def initial_noise(model: LatentDiffusion, n: int, seed: int) -> Tensor:
    """x_T (n, C, h, w): picture i depends on (seed, i) alone, not on how many are drawn with it."""
    return _noise_of(model, [(seed, i) for i in range(n)])


def _noise_of(model: LatentDiffusion, draws: Sequence[tuple[int, int]]) -> Tensor:
    rows = [torch.randn(model.latent_shape, generator=generator(s, "x_T", i)) for s, i in draws]
    return torch.stack(rows).to(model.device)


def usual_batch(image_size: int) -> int:
    """Pictures drawn at once if nothing else is asked for: a million pixels, at most 64 pictures.

    The decoder's activations are the largest there are: kilobytes for every pixel.
    """
    return max(1, min(64, 2**20 // image_size**2))


@torch.no_grad()
def sample(
    model: LatentDiffusion,
    prompts: str | Sequence[str] | None = None,
    *,
    cond: Tensor | None = None,
    uncond: Tensor | None = None,
    steps: int = 50,
    sampler: str = "ddim",
    scale: float = 5.0,
    eta: float = 0.0,
    seed: int | None = None,
    x_T: Tensor | None = None,
    decode: bool = True,
    batch_size: int | None = None,
    negative_prompt: str = "",
    progress: bool = False,
    callback: Callable[[samplers.SamplerState], None] | None = None,
    source: Source | None = None,
    draws: Sequence[tuple[int, int]] | None = None,
    clip_skip: int | None = None,
) -> Tensor:
    """Draw one picture a prompt.

    Args:
        model: what ``ldm.load`` returned.
        prompts: B prompts (one string is one prompt); or give
        cond: (B, L, D) contexts instead.
        uncond: (B or 1, L, D); by default the context of ``negative_prompt``.
        steps, sampler, eta: ``ddim`` (eta in [0, 1]), ``plms`` or ``dpm++``.
        scale: classifier-free guidance; 1 switches it off, more follows the prompt more closely.
        seed: picture i is a function of (seed, i); ``None`` draws one from torch's generator.
        x_T: (B or 1, C, h, w) start noise instead of the seed's.
        decode: return pictures, else the scaled latents z_0.
        batch_size: pictures drawn at once; by default ``usual_batch`` of the model's size.
        progress, callback: a bar, and a call after every step (per batch).
        source: a picture to draw from, see ``ldm.load_source``: SDEdit, or inpainting if it has a
            mask.
        draws: the (seed, i) of every picture, one a prompt, instead of ``seed``.
        clip_skip: see ``ldm.load``; by default the model's.

    Returns:
        (B, 3, H, W) float32 in [-1, 1], or (B, C, h, w) latents.

    Raises:
        UserError: both or none of ``prompts`` and ``cond``, ``seed`` beside ``draws``, or sizes
            that do not agree.
    """
    if (prompts is None) == (cond is None):
        raise UserError("give either prompts or cond")
    if prompts is not None:
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise UserError("give at least one prompt")
        with model.text.skipping(clip_skip):
            cond = model.condition(prompts)
    assert cond is not None
    n = len(cond)
    if uncond is None and scale != 1:
        with model.text.skipping(clip_skip):
            uncond = model.condition([negative_prompt])
    if draws is None:
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        draws = [(seed, i) for i in range(n)]
    elif seed is not None or len(draws) != n:
        raise UserError(f"{len(draws)} draws for {n} prompts; give one a prompt, and no seed")
    if x_T is None:
        x_T = _noise_of(model, draws)
    elif len(x_T) not in (1, n):
        raise UserError(f"x_T has {len(x_T)} rows for {n} prompts; give one a prompt, or one for all")
    x_T = x_T.expand(n, *x_T.shape[1:])
    z_source = None if source is None else source.latents(model)
    mask = None if source is None else source.latent_mask(model)
    batch_size = batch_size or usual_batch(model.image_size)

    def after_step(state: samplers.SamplerState) -> None:
        interrupt.check()
        if callback is not None:
            callback(state)

    pieces = []
    for start in range(0, n, batch_size):
        rows = slice(start, start + batch_size)
        z = samplers.sample(
            model.eps,
            x_T[rows].to(model.device),
            cond=cond[rows],
            uncond=uncond[rows] if uncond is not None and len(uncond) == n else uncond,
            scale=scale,
            schedule=model.schedule,
            sampler=sampler,
            steps=steps,
            eta=eta,
            generator=[generator(s, "noise", i) for s, i in draws[rows]] if eta else None,
            callback=after_step,
            progress=progress,
            source=z_source,
            strength=1.0 if source is None else source.strength,
            mask=mask,
        )
        pieces.append(_finish(model, z, source) if decode else z)
    return torch.cat(pieces)


def _finish(model: LatentDiffusion, z: Tensor, source: Source | None) -> Tensor:
    images = model.decode(z).clamp(-1, 1)
    return images if source is None else source.paste(images)
