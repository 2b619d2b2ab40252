"""One optimiser step of an inversion: what is drawn, what is minimised, what is logged.

A concept alone is the case N = 1. Concepts in one step share the frozen weights and nothing else: each brings
its own micro-batch (a function of its seed and the step), and the objective is the sum over concepts of the
mean over their own samples, so that the gradient of a concept's v* is the one that it would have alone.
Lightning's Trainer (``module.py``) and packs (``many/``) both make their steps of what is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.device import carry
from ldm.diffusion.condition import Context
from ldm.diffusion.loss import LossTerms
from ldm.inversion.attention import AttentionTerm, attention_distance
from ldm.inversion.context import ContextTerm
from ldm.inversion.latents import ConceptBatches
from ldm.models.attention import AttentionMaps
from ldm.seeding import generator
from ldm.training.timesteps import TimestepConfig, draw_timesteps
from ldm.words.regularize import Form, regularization
from ldm.words.splice import join

#: the number of the first batch that is only measured: training never comes so far
FAR = 2**40


class Draw(NamedTuple):
    """A micro-batch of B samples of one concept.

    z, noise: (B, C, h, w) scaled latents, and the noise that is added to them; t: (B,) int64; prompts: B;
    mask: (B, 1, h, w), where the loss counts, ``None`` for everywhere; kept: (B,) int64, how many units count
    of words that can be cut, or ``None`` for all; areas: (B, W, r, r), where the prompts' words are, if that
    is compared with anything.
    """

    z: Tensor
    t: Tensor
    noise: Tensor
    prompts: list[str]
    mask: Tensor | None = None
    kept: Tensor | None = None
    areas: Tensor | None = None

    def part(self, own: slice) -> Draw:
        """Some of the samples."""
        optional = self.mask, self.kept, self.areas
        mask, kept, areas = (None if of_all is None else of_all[own] for of_all in optional)
        return Draw(self.z[own], self.t[own], self.noise[own], self.prompts[own], mask, kept, areas)

    def split(self, size: int) -> list[Draw]:
        """All of the samples, ``size`` at a time."""
        return [self.part(slice(i, i + size)) for i in range(0, len(self.prompts), size)]


class Objective:
    """What one concept minimises: everything here is a pure function of the step.

    Args:
        model: the frozen parts, and the manager with the concept's words.
        batches: latents and prompts of the concept.
        timesteps: which noise levels are looked at.
        regularization: weight of the words' distance to where they started (figure 10).
        form: of that distance.
        summed_drift: the official form of that distance (``CompatConfig``).
        context: what keeps the rest of a prompt, if anything does.
        attention: what keeps words where their masks are, if anything does.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        batches: ConceptBatches,
        *,
        timesteps: TimestepConfig | None = None,
        regularization: float = 0.0,
        form: Form = "squared",
        summed_drift: bool = False,
        context: ContextTerm | None = None,
        attention: AttentionTerm | None = None,
    ) -> None:
        self.model, self.batches, self.timesteps = model, batches, timesteps or TimestepConfig()
        self.regularization, self.form, self.summed_drift = regularization, form, summed_drift
        self.context, self.attention = context, attention
        self._ids: dict[str, Tensor] = {}  # prompt -> (1, L), on the host

    def draw(self, number: int) -> Draw:
        """Micro-batch ``number`` >= 0, on the host."""
        batch = self.batches.batch(number)
        rng = generator(self.batches.seed, self.batches.concept, "units", number)
        kept = self.model.manager.draw_kept(len(batch["z"]), rng)
        return Draw(
            batch["z"], *self.noise(batch["z"], number), batch["prompt"], batch["mask"], kept, batch["areas"]
        )

    def noise(self, z: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Timesteps (B,), one from each of B strata, and noise (B, C, h, w) for latents z, on the host."""
        rng = generator(self.batches.seed, self.batches.concept, "diffusion", number)
        t = draw_timesteps(len(z), self.model.schedule.num_timesteps, self.timesteps, rng)
        return t, torch.randn(z.shape, generator=rng)

    def fixed(self, size: int) -> list[Draw]:
        """At least ``size`` samples that are the same at every step and never trained on, a training batch at
        a time; their timesteps are one from each stratum of all."""
        n = self.batches.batch_size
        batches = [self.batches.batch(FAR + i) for i in range(-(-size // n))]
        z = torch.cat([batch["z"] for batch in batches])
        prompts = [prompt for batch in batches for prompt in batch["prompt"]]
        masks = [batch["mask"] for batch in batches if batch["mask"] is not None]
        return Draw(z, *self.noise(z, FAR), prompts, torch.cat(masks) if masks else None).split(n)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Ids (B, L) of prompts, on the host: there it is worked out where v* goes, without a wait."""
        for prompt in prompts:
            if prompt not in self._ids:
                self.model.cuts.tell(self.model.text.tokenizer, self.model.manager, [prompt])
                self._ids[prompt] = self.model.text.tokenize([prompt])
        return torch.cat([self._ids[prompt] for prompt in prompts])

    def keys(self, draw: Draw) -> list[tuple[Any, ...]]:
        """What the context of each sample depends on: its prompt, and as far as the words in the prompt vary
        with them its timestep and the units that count."""
        manager = self.model.manager
        kept = [None] * len(draw.prompts) if draw.kept is None else draw.kept.tolist()
        return [
            (prompt, *manager.moments(self.tokens([prompt]), t, units))
            for prompt, t, units in zip(draw.prompts, draw.t.tolist(), kept, strict=True)
        ]

    def pull(self, step: int) -> Tensor:
        """Scalar: how far the words are from their start, before it is weighted."""
        manager = self.model.manager
        return regularization(manager, step, manager.trained, form=self.form, summed_drift=self.summed_drift)

    def context_distance(self, step: int) -> Tensor:
        """Scalar: how far the words change what the rest of a prompt says, before it is weighted."""
        assert self.context is not None
        rng = generator(self.batches.seed, self.batches.concept, "context", step)
        return self.context.distance(self.model, step, rng)


class Part(NamedTuple):
    """What a concept brings to a joint step; ``step`` counts its own optimiser steps."""

    objective: Objective
    draw: Draw
    step: int


class Loss(NamedTuple):
    """Of one concept in a joint step: the scalar that it minimises, and what is logged of it, detached."""

    total: Tensor
    scalars: dict[str, Tensor]


def losses(model: LatentDiffusion, parts: Sequence[Part]) -> list[Loss]:
    """The loss of each concept: one text encoding, one call of the UNet.

    Args:
        model: the shared one; the concepts' own models are it, or twins of it (``with_own_words``).
    """
    asked = [part.objective.attention for part in parts if part.objective.attention is not None]
    maps = AttentionMaps(asked[0].side) if asked else None
    told = contexts(model, parts)
    sizes = [len(part.draw.prompts) for part in parts]
    per_sample = _terms(model, parts, told, maps).per_sample.split(sizes)
    nowhere = [None] * len(parts)
    seen = nowhere if maps is None else maps.mean.split(sizes)
    found = []
    for part, own, where, ids in zip(parts, per_sample, seen, told.ids.split(sizes), strict=True):
        loss = own.mean()
        scalars = {"train/loss": loss.detach()}
        if part.objective.regularization:
            pull = part.objective.pull(part.step)
            scalars["train/regularization"] = pull.detach()
            loss = loss + part.objective.regularization * pull
        if part.objective.context is not None:
            distance = part.objective.context_distance(part.step)
            scalars["train/context"] = distance.detach()
            loss = loss + part.objective.context.weight * distance
        term = part.objective.attention
        if term is not None and where is not None and part.draw.areas is not None:
            apart = attention_distance(where, ids, part.draw.areas, term.token_ids).mean()
            scalars["train/attention"] = apart.detach()
            loss = loss + term.weight * apart
        found.append(Loss(loss, scalars))
    return found


@torch.no_grad()
def measure(model: LatentDiffusion, parts: Sequence[Part]) -> Tensor:
    """Scalar: the plain squared error over all samples, where it counts; one part at a time, to need no more
    memory than a step."""
    return torch.cat([_terms(model, [part], contexts(model, [part])).simple for part in parts]).mean()


def _terms(
    model: LatentDiffusion, parts: Sequence[Part], told: Told, maps: AttentionMaps | None = None
) -> LossTerms:
    tensors = zip(*((part.draw.z, part.draw.t, part.draw.noise) for part in parts), strict=True)
    z, t, noise = (carry(torch.cat(own), model.device) for own in tensors)
    return model.loss_terms(z, told.context, t, noise, _masks(model, parts), maps)


def _masks(model: LatentDiffusion, parts: Sequence[Part]) -> Tensor | None:
    """Where the loss of all samples counts, (B, 1, h, w); ``None``: everywhere in each."""
    draws = [part.draw for part in parts]
    if all(draw.mask is None for draw in draws):
        return None
    masks = [torch.ones_like(draw.z[:, :1]) if draw.mask is None else draw.mask for draw in draws]
    return carry(torch.cat(masks), model.device)


class Told(NamedTuple):
    """What the UNet is told about B samples: the context, and the tokens (B, L) behind it, on the host."""

    context: Context
    ids: Tensor


def contexts(model: LatentDiffusion, parts: Sequence[Part]) -> Told:
    """The context of all samples, each different prompt of a concept encoded once (and once a moment, where
    words in it vary with time).

    Every concept puts in its own words, whose private ids may be another's too; the encoder then runs once.
    """
    keys = [part.objective.keys(part.draw) for part in parts]
    different = [{key: row for row, key in enumerate(own)} for own in keys]
    ids = [part.objective.tokens([key[0] for key in own]) for part, own in zip(parts, different, strict=True)]
    counts = [len(own) for own in different]
    looked_up = model.text.embed(torch.cat(ids)).split(counts)
    placed = []
    for part, own_ids, embeds, own in zip(parts, ids, looked_up, different, strict=True):
        t, kept = (None if x is None else x[list(own.values())] for x in (part.draw.t, part.draw.kept))
        placed.append(part.objective.model.manager(own_ids, embeds, part.step, t, kept))
    together = join(placed)  # one prompt for each layer, or one for all
    each = [(i, key) for i, own in enumerate(different) for key in own]
    places = {key: row for row, key in enumerate(each)}
    rows = torch.tensor([places[i, key] for i, own in enumerate(keys) for key in own])
    context = Context(*model.text.keys_and_values(together.embeds, together.ids, together.aside))
    return Told(context[carry(rows, model.device)], together.ids[rows])
