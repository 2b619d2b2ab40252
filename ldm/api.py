"""The public functions behind ``import ldm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.backbone.loading import load
from ldm.backbone.model import LatentDiffusion
from ldm.inversion.concept import concept_of
from ldm.inversion.config import settle
from ldm.inversion.run import learn
from ldm.inversion.task import captions_of
from ldm.io.embeddings import Embedding
from ldm.sampling.sample import sample

__all__ = ["evaluate", "invert", "load", "sample"]


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
        images: a folder, files, PIL pictures, arrays or tensors; 3-5 of them (see
            ``ldm.inversion.concept.concept_of``). The caption files of a folder are used as on the
            command line.
        placeholder: the new word, any string ("<cat-toy>").
        init: a phrase to start from ("cat toy"), or ``None``.
        steps, lr, seed: optimiser steps, base learning rate, seed; the model's own defaults if not given.
        settings: any other key of ``ldm.inversion.config.InversionConfig`` (``num_vectors=2``,
            ``optim={"weight_decay": 0.01}`` ...). They win over the model's own level by level, as
            ``--set``, a YAML file or a list of concepts does.

    Returns:
        The embedding: ``.placeholder``, ``.vectors`` (K, D) or, with ``per_layer``, (n, K, D) float32,
        ``.metadata``; write it with ``ldm.embeddings.save_embeddings``.

    Raises:
        UserError: unusable pictures, an unknown init word, an unknown setting.
    """
    given = {"init": init, "trainer.max_steps": steps, "optim.lr": lr, "seed": seed}
    given = {key: value for key, value in given.items() if value is not None}
    folder = images if isinstance(images, str | Path) else ""
    own = {"images": str(folder), "placeholder": placeholder}
    config = settle(model.inversion_defaults, settings, given, own)
    concept = concept_of(images, model.image_size, config.framing())
    captions = captions_of(concept, config)
    return learn(model, concept, config, captions=captions, progress=progress)


def evaluate(model: LatentDiffusion, embedding: Embedding, images: Any, **settings: Any) -> dict[str, Any]:
    """Measure a word: reconstruction, editability and obeyed backgrounds (``ldm evaluate``)."""
    from ldm.evaluation.word import evaluate_embedding

    concept = concept_of(images, model.image_size)
    return evaluate_embedding(model, embedding, concept.images, sample=sample, **settings)
