"""How a word looks step by step: reconstruction and editability of each of its embeddings, and the best one.

All embeddings draw the same prompts from the same noise, so that two steps differ in the word alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.evaluation import metrics
from ldm.evaluation.scorers import Scorer
from ldm.evaluation.word import EDIT_PROMPTS, RECONSTRUCTION_PROMPT, without_word
from ldm.sampling.sample import Sampling, sample


@dataclass(frozen=True)
class Moment:
    """A word after so many steps.

    Attributes:
        step: optimiser steps.
        near: of each picture of the neutral prompt, the mean cosine to the references.
        follows: of each picture of an edit, the cosine to its text; empty if the scorer reads no text.
    """

    step: int
    near: tuple[float, ...]
    follows: tuple[float, ...]

    @property
    def reconstruction(self) -> float:
        """Mean of cosines, as the official evaluator averages."""
        return sum(self.near) / len(self.near)

    @property
    def editability(self) -> float | None:
        """Mean of cosines over all edits."""
        return sum(self.follows) / len(self.follows) if self.follows else None

    @property
    def product(self) -> float:
        """Reconstruction times editability: a word is as good as it is near *and* follows prompts."""
        return self.reconstruction * (1.0 if self.editability is None else self.editability)


@dataclass(frozen=True)
class Prompts:
    """What is drawn of every embedding; ``n`` pictures of each prompt."""

    neutral: str = RECONSTRUCTION_PROMPT
    edits: tuple[str, ...] = EDIT_PROMPTS
    n: int = 4
    seed: int = 0

    def rows(self, called: str) -> list[str]:
        """All prompts, the neutral ones first, with the word in them."""
        prompts = [self.neutral, *self.edits]
        return [prompt.replace("{}", called) for prompt in prompts for _ in range(self.n)]


def draw(model: LatentDiffusion, called: str, prompts: Prompts, sampling: Sampling) -> Tensor:
    """The pictures (P x n, 3, H, W) of a word that the model knows."""
    rows = prompts.rows(called)
    how = {"steps": sampling.steps, "sampler": sampling.sampler, "scale": sampling.scale}
    return sample(model, prompts=rows, seed=prompts.seed, **how).cpu()


def measure(step: int, pictures: Tensor, prompts: Prompts, scorer: Scorer, references: Tensor) -> Moment:
    """The figures of the pictures that :func:`draw` returned; ``references`` are features (R, D)."""
    features = scorer.image_features(pictures)
    near = (features[: prompts.n] @ references.T).mean(1)
    follows = torch.empty(0)
    if scorer.reads_text and prompts.edits:
        texts = scorer.text_features([without_word(prompt) for prompt in prompts.edits])
        follows = (features[prompts.n :] * texts.repeat_interleave(prompts.n, dim=0)).sum(1)
    return Moment(step, tuple(near.tolist()), tuple(follows.tolist()))


def best(moments: Sequence[Moment]) -> Moment:
    """The one with the highest product of reconstruction and editability, the first of equals."""
    return max(moments, key=lambda moment: (moment.product, -moment.step))


def decline(moments: Sequence[Moment]) -> Moment | None:
    """Where it starts to look bad: from there on every later embedding is worse than the best one.

    Worse means that reconstruction or editability lies below the best one's with a 95 % interval (bootstrap
    over pictures of the same prompt and noise) that does not reach 0. ``None``: there is no such step.
    """
    top = best(moments)
    found = None
    for moment in reversed([one for one in moments if one.step > top.step]):
        if not (_below(moment.near, top.near) or _below(moment.follows, top.follows)):
            break
        found = moment
    return found


def _below(values: Sequence[float], of: Sequence[float]) -> bool:
    if len(values) < 2:
        return False
    return metrics.bootstrap([a - b for a, b in zip(values, of, strict=True)])[1] < 0


def rows(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """A row for each embedding, for tables; ``mark`` names the best one and where the decline starts."""
    top, bad = best(moments), decline(moments)
    return [
        {
            "step": moment.step,
            "reconstruction": moment.reconstruction,
            "editability": moment.editability,
            "product": moment.product,
            "mark": "best" if moment is top else "starts to look bad" if moment is bad else "",
        }
        for moment in moments
    ]
