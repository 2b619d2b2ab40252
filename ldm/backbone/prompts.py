"""Prompts to conditions: tokens, the learned words in their places, and the text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.device import carry
from ldm.diffusion.condition import Condition, Context
from ldm.text.conditioner import TextConditioner
from ldm.words.manager import EmbeddingManager


def encode(
    text: TextConditioner, manager: EmbeddingManager, prompts: Sequence[str], step: int | Tensor | None
) -> Condition:
    """The condition of B prompts, each different one encoded once.

    Args:
        text: tokenizer and text encoder.
        manager: the learned words.
        prompts: B prompts.
        step: optimiser step of progressive words, one for all or a (B,) tensor; ``None``: fully grown.
    """
    steps = step.tolist() if isinstance(step, Tensor) else [step] * len(prompts)
    places = {key: i for i, key in enumerate(dict.fromkeys(zip(prompts, steps, strict=True)))}
    if isinstance(step, Tensor):
        step = torch.tensor([s for _, s in places])
    ids = text.tokenize([prompt for prompt, _ in places])  # stays on the host, which works out where v* goes
    ids, embeds = manager(ids, text.embed(ids), step)
    context = Context(text.contexts(embeds, ids))
    if len(places) == len(prompts):
        return context
    rows = torch.tensor([places[key] for key in zip(prompts, steps, strict=True)])
    return context[carry(rows, embeds.device)]
