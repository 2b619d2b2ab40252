"""The public functions behind ``import ldm``."""

from __future__ import annotations

from typing import Any

from ldm.config import resolve
from ldm.data.concept import concept_of
from ldm.io.embeddings import Embedding
from ldm.loading import load
from ldm.model import LatentDiffusion
from ldm.training.config import InversionConfig, check
from ldm.training.run import learn

__all__ = ["evaluate", "invert", "load"]


def invert(
    model: LatentDiffusion,
    images: Any,
    placeholder: str,
    init: str | None = None,
    *,
    steps: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> Embedding:
    """Learn a word from pictures; ``model`` knows it afterwards.

    Args:
        model: from ``ldm.load``.
        images: a folder, files, PIL pictures, or a tensor (N, 3, S, S) in [-1, 1]; 3-5 of them.
        placeholder: the new word, any string ("<cat-toy>").
        init: a phrase to start from ("cat toy"), or ``None``.
        steps, lr, seed: optimiser steps, base learning rate, seed; the model's own defaults if not given.
        settings: any other key of ``ldm.training.config.InversionConfig`` (``num_vectors=2`` ...).

    Returns:
        The embedding: ``.placeholder``, ``.vectors`` (K, D) or, with ``per_layer``, (n, K, D) float32,
        ``.metadata``; write it with ``ldm.embeddings.save_embeddings``.

    Raises:
        UserError: unusable pictures, an unknown init word, an unknown setting.
    """
    values = {**model.inversion_defaults, **settings}
    values |= {"placeholder": placeholder, "images": "", "init": init}
    if seed is not None:
        values["seed"] = seed
    if steps is not None:
        values["trainer"] = {**(values.get("trainer") or {}), "max_steps": steps}
    if lr is not None:
        values["optim"] = {**(values.get("optim") or {}), "lr": lr}
    config = resolve(InversionConfig, values)
    check(config)
    concept = concept_of(images, model.image_size, **config.framing())
    return learn(model, concept, config, progress=progress)


def evaluate(
    model: LatentDiffusion, embedding: Embedding, images: Any, **settings: Any
) -> dict[str, Any]:
    """Measure a word: reconstruction, editability and obeyed backgrounds (``ldm evaluate``)."""
    from ldm.evaluation.word import evaluate_embedding
    from ldm.sampling import sample

    concept = concept_of(images, model.image_size)
    return evaluate_embedding(model, embedding, concept.images, sample=sample, **settings)
