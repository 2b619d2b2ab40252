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
from ldm.io.in_memory import Pictures
from ldm.sampling.sample import sample
from ldm.training.loggers import trust_settings

__all__ = ["evaluate", "invert", "load", "sample"]


def invert(
    model: LatentDiffusion,
    images: Pictures,
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
        model: What ``ldm.load`` returned.
        images: A folder, files, PIL pictures, arrays or tensors, three to five of them. The caption files of
            a folder are used as on the command line.
        placeholder: The new word, any string, such as "<cat-toy>".
        init: A phrase to start from, such as "cat toy". ``None`` starts near the vocabulary's mean.
        steps: Optimiser steps; by default the model's own number.
        lr: Base learning rate; by default the model's own.
        seed: Everything random is a function of it; by default the model's own.
        progress: Show a progress bar.
        **settings: Any other setting (``num_vectors=2``, ``optim={"weight_decay": 0.01}`` ...), named as for
            ``--set``, in a YAML file or in a list of concepts; ``preset="paper"`` for those of a preset.

    Returns:
        The embedding: ``.placeholder``, ``.vectors`` (K, D) float32, or (m, K, D) where its kind
        has several sets of them, ``.metadata``; write it with ``ldm.embeddings.save_embeddings``.

    Raises:
        UserError: unusable pictures, an unknown init word, an unknown setting.
    """
    given = {"init": init, "trainer.max_steps": steps, "optim.lr": lr, "seed": seed}
    given = {key: value for key, value in given.items() if value is not None}
    folder = images if isinstance(images, str | Path) else ""
    own = {"images": str(folder), "placeholder": placeholder}
    trust_settings(settings)
    config = settle(model.inversion_defaults, settings, given, own)
    concept = concept_of(images, model.image_size, config.framing(), tuple(config.words))
    captions = captions_of(concept, config)
    return learn(model, concept, config, captions=captions, progress=progress)


def evaluate(
    model: LatentDiffusion, embedding: Embedding, images: Pictures, **settings: Any
) -> dict[str, Any]:
    """Measure a word: reconstruction, editability and obeyed backgrounds, as ``ldm evaluate`` does.

    Args:
        model: What ``ldm.load`` returned.
        embedding: The word, from ``ldm.invert`` or ``ldm.embeddings.load_embedding``.
        images: Pictures of the concept, as for ``ldm.invert``. Files that the word was not learned from are
            the references if there are any, otherwise all are.
        **settings: ``scorers``, names such as ``["clip:ViT-B-32/openai"]``, with ``allow_download``; ``n``
            samples of each prompt (16), ``seed`` (0), ``prompts`` with ``{}`` for the word, and ``out``, a
            folder for pictures and ``report.html``; in the folder of the run that learned the word, the
            figures go to that run's dashboards too.

    Returns:
        ``scores``, a row for each scorer and figure, with its ceiling and the scorer's identity;
        ``by_prompt``; ``backgrounds`` with ``share`` and its 95 % interval ``low`` to ``high``.
    """
    from ldm.evaluation.word import evaluate_embedding, references_of
    from ldm.inversion.evaluated import log_scores, run_of

    concept = concept_of(images, model.image_size)
    chosen = list(range(len(concept.images)))
    if concept.hashes:
        chosen, kind = references_of(embedding, concept.hashes)
        settings = {"references": kind, **settings}
    figures = evaluate_embedding(model, embedding, concept.images[chosen], sample=sample, **settings)
    out = settings.get("out")
    run = run_of(Path(out)) if out is not None else None
    if out is not None and run is not None:
        pictures = [{**one, "file": Path(out) / one["file"]} for one in figures["pictures"]]
        step = int(embedding.metadata.get("step", 0))
        log_scores(run, embedding.placeholder, figures["scores"], step, pictures)
    return figures
