"""Pictures for an evaluation: many prompts in chunks of one size, each chunk with its own seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from rich.progress import Progress
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.sampling.sample import Sampling
from ldm.text.english import article

#: Draws as ``ldm.sample`` does.
SampleFunction = Callable[..., Tensor]
#: Pictures between two movements of the progress bar.
CHUNK = 25
COLOUR_PROMPT = "a photo of {{}} on {article}{colour} background"


def colour_prompt(colour: str) -> str:
    """``a photo of {} on a <colour> background``."""
    return COLOUR_PROMPT.format(article=article(colour), colour=colour)


def draw(
    model: LatentDiffusion,
    sample: SampleFunction,
    prompts: Sequence[str],
    sampling: Sampling,
    seed: int,
    title: str = "",
) -> Tensor:
    """One picture a prompt, (N, 3, H, W) in [-1, 1] on the CPU; with a bar if there is a title.

    Picture i depends on its prompt, ``seed`` and i, through the chunk that it is drawn in.
    """
    parts = []
    with Progress(disable=not title, transient=True) as bar:
        task = bar.add_task(title, total=len(prompts))
        for start in range(0, len(prompts), CHUNK):
            chunk = list(prompts[start : start + CHUNK])
            own = random.Random(f"{seed} {start}").getrandbits(31)
            parts.append(sample(model, prompts=chunk, seed=own, **asdict(sampling)).cpu().float())
            bar.advance(task, len(chunk))
    return torch.cat(parts)
