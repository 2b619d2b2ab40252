"""Prompts to pictures: contexts, classifier-free guidance, a sampler and the decoder in one call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm import interrupt
from ldm.backbone.forms import drawn_in
from ldm.backbone.model import LatentDiffusion
from ldm.config import resolve
from ldm.diffusion import samplers
from ldm.diffusion.condition import Condition, condition_of
from ldm.errors import UserError
from ldm.ranges import Positive
from ldm.sampling.source import Source
from ldm.seeding import generator
from ldm.shorthand import spelled

#: latents are scaled to unit variance; those of strong guidance stay below 100
MOST = 1e4


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        steps: The number of sampling steps, which are made exactly.
        sampler: The sampler's name, one of ``ldm.diffusion.samplers.SAMPLERS``.
        scale: The scale of classifier-free guidance; 1 is no guidance.
        precision: What UNet and text conditioner compute in: ``bf16``, ``16`` or ``32``, or ``model``, as
            the model is loaded.
    """

    steps: Positive = 50
    sampler: str = "ddim"
    scale: float = 5.0
    precision: Literal["model", "bf16", "16", "32"] = "model"

    @classmethod
    def of(cls, model: LatentDiffusion, **given: object) -> Sampling:
        """Those ``given`` that are not ``None``, else the model's own, else the defaults.

        The model's own steps, sampler and scale are in the section ``inversion.show`` of its config.

        Raises:
            UserError: an unknown sampler, no steps, more than the model has, or a scale that is no number.
        """
        own = spelled(getattr(model, "inversion_defaults", {}), tell=False).get("show") or {}
        values = {key: own[key] for key in ("steps", "sampler", "scale") if key in own}
        values |= {name: value for name, value in given.items() if value is not None}
        chosen = resolve(cls, values, "sampling ")
        if chosen.sampler not in samplers.SAMPLERS:
            raise UserError(f"unknown sampler {chosen.sampler!r}; use one of {', '.join(samplers.SAMPLERS)}")
        schedule = getattr(model, "schedule", None)
        if schedule is not None and chosen.steps > schedule.num_timesteps:
            raise UserError(f"{chosen.steps} sampling steps; the model has {schedule.num_timesteps} at most")
        return chosen


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
    cond: Condition | Tensor | None = None,
    uncond: Condition | Tensor | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    scale: float | None = None,
    eta: float = 0.0,
    seed: int | None = None,
    x_T: Tensor | None = None,
    decode: bool = True,
    batch_size: int | None = None,
    precision: str | None = None,
    negative_prompt: str = "",
    progress: bool = False,
    callback: Callable[[samplers.SamplerState], None] | None = None,
    source: Source | None = None,
    draws: Sequence[tuple[int, int]] | None = None,
    clip_skip: int | None = None,
    truncate: int | None = None,
) -> Tensor:
    """Draw one picture a prompt.

    Args:
        model: What ``ldm.load`` returned.
        prompts: B prompts; a string is one prompt. Give these or ``cond``.
        cond: What ``model.condition`` returned for B prompts, instead of prompts; or a plain tensor
            (B, L, D), which every layer of the UNet then reads at every timestep.
        uncond: The same, of B rows or 1, that guidance leads away from; by default ``negative_prompt``'s.
        steps: Steps of the sampler; by default what suits the model, else 50.
        sampler: ``ddim``, ``plms`` or ``dpm++``; by default what suits the model, else ``ddim``.
        scale: Scale of classifier-free guidance: 1 switches it off, more follows the prompt more closely. By
            default what suits the model, else 5.
        eta: Share of fresh noise in each step of ``ddim``, in [0, 1].
        seed: Picture i is a function of (seed, i); ``None`` draws a seed from torch's generator.
        x_T: Noise (B or 1, C, h, w) to start from, instead of the seed's.
        decode: Return pictures; else the scaled latents z_0.
        batch_size: Pictures drawn at once; by default a million pixels, at most 64 pictures.
        precision: What UNet and text conditioner compute in: ``bf16`` (faster than ``32`` where the device
            has it), ``16`` or ``32``; by default as the model is loaded. The decoder keeps its own.
        negative_prompt: What to stay away from.
        progress: Show a progress bar.
        callback: Called after every step of each batch.
        source: A picture to draw from, made by ``ldm.load_source``: SDEdit, or inpainting if it has a mask.
        draws: The (seed, i) of each picture, one a prompt, instead of ``seed``.
        clip_skip: Which of the last blocks of a CLIP text encoder is used; by default the model's own.
        truncate: How many of their first units count of words that can be cut (the kind ``space_time``); by
            default all.

    Returns:
        (B, 3, H, W) float32 in [-1, 1], or (B, C, h, w) latents.

    Raises:
        UserError: both or none of ``prompts`` and ``cond``, ``seed`` beside ``draws``, or sizes
            that do not agree.
        BrokenPictures: (a ``UserError``) numbers overflowed; it has the pictures that are whole.
    """
    how = Sampling.of(model, steps=steps, sampler=sampler, scale=scale, precision=precision)
    steps, sampler, scale = how.steps, how.sampler, how.scale
    if seed is not None and seed < 0:
        raise UserError(f"seed is {seed}; give at least 0, or None for one of its own")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    if (prompts is None) == (cond is None):
        raise UserError("give either prompts or cond")
    if truncate is not None and prompts is None:
        raise UserError("truncate goes with prompts; with cond, give it to model.condition")
    pieces, whole = [], []
    with drawn_in(model, how.precision):
        if prompts is not None:
            prompts = [prompts] if isinstance(prompts, str) else list(prompts)
            if not prompts:
                raise UserError("give at least one prompt")
            with model.text.skipping(clip_skip):
                cond = model.condition(prompts, truncate=truncate)
        assert cond is not None
        cond = condition_of(cond)
        n = len(cond)
        if uncond is None and scale != 1:
            with model.text.skipping(clip_skip):
                uncond = model.condition([negative_prompt], truncate=truncate)
        uncond = None if uncond is None else condition_of(uncond)
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
            piece = model.decode(z) if decode else z
            whole.append(_sane(z, MOST) & _sane(piece, math.inf))
            pieces.append(_finish(piece, source) if decode else z)
    drawn, broken = torch.cat(pieces), (~torch.cat(whole)).nonzero().flatten().tolist()
    if broken:
        first = f"number {broken[0]}" if prompts is None else f"of {prompts[broken[0]]!r}"
        raise BrokenPictures(
            f"{len(broken)} of {n} pictures (the first is {first}) are nothing but "
            "overflow: use a lower guidance scale, another embedding, or precision float32",
            drawn, broken,
        )  # fmt: skip
    return drawn


class BrokenPictures(UserError):
    """Some pictures came out as NaN, or as numbers that no picture has, which would be saved as black.

    Attributes:
        drawn: (B, ...) all that were drawn, as :func:`sample` returns them.
        broken: the rows of those that are no pictures.
    """

    def __init__(self, message: str, drawn: Tensor, broken: Sequence[int]) -> None:
        super().__init__(message)
        self.drawn, self.broken = drawn, tuple(broken)


def _sane(values: Tensor, most: float) -> Tensor:
    """(B,) bool: which rows of (B, ...) are finite and not beyond ``most``."""
    largest = values.detach().flatten(1).abs().amax(dim=1)  # NaN if any is
    return largest.isfinite() & (largest <= most)


def _finish(images: Tensor, source: Source | None) -> Tensor:
    images = images.clamp(-1, 1)
    return images if source is None else source.paste(images)
