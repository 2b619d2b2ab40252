"""One learned word, measured as section 4.7 of the paper does (Gal et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation import metrics
from ldm.evaluation.clip_judge import Judge
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.drawing import SampleFunction, colour_prompt, draw
from ldm.evaluation.metrics import Share, Similarity
from ldm.io.atomic import write_json
from ldm.io.embeddings import Embedding, learned_clip_skip
from ldm.io.images import save_grid
from ldm.io.runs import now, versions
from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report
from ldm.sampling.sample import Sampling

RECONSTRUCTION_PROMPT = "a photo of {}"
EDIT_PROMPTS = (
    "a photo of {} on the beach",
    "a photo of {} in the snow",
    "a photo of {} on grass",
    "a photo of {} under a night sky",
)


def evaluate_embedding(
    model: Any,
    embedding: Embedding,
    images: Tensor,
    *,
    sample: SampleFunction,
    clip: Judge | None = None,
    n: int = 16,
    seed: int = 0,
    sampling: Sampling | None = None,
    prompts: Sequence[str] = EDIT_PROMPTS,
    colours: Sequence[str] = COLOUR_NAMES,
    out: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a learned word as section 4.7 of the paper does, and the backgrounds it lets through.

    Args:
        model, sample: as for :func:`evaluate_base`; the model knows the word afterwards.
        images: training pictures (M, 3, H, W) in [-1, 1].
        clip: the judge (default: the shipped ``emoji-clip``).
        n: samples of each prompt (the paper: 64, which on a CPU takes minutes).
        prompts: edits, with ``{}`` for the word.
        colours: each drawn once; empty: not measured.
        out: folder for ``result.json``, ``training.png``, ``samples.png``, ``backgrounds.png`` and
            ``report.html``.

    Returns:
        ``reconstruction`` (CLIP-I) and ``editability`` (CLIP-T, also by prompt), each as
        ``cosine_of_means`` (the paper's text) and ``mean_of_cosines`` (the official code);
        ``between_training_pictures``, which reconstruction is read against; ``backgrounds`` with
        ``share``, ``low``, ``high`` (95 %); and how it was measured.
    """
    if clip is None:
        from ldm.evaluation.clip_judge import load_clip

        clip = load_clip()
    sampling = sampling or Sampling.of(model)
    word = embedding.placeholder
    if word in model.manager.placeholders:
        model.remove_placeholder(word)
    model.add_placeholder(word, embedding.vectors)
    rows = [t.replace("{}", word) for t in (RECONSTRUCTION_PROMPT, *prompts) for _ in range(n)]
    rows += [colour_prompt(colour).replace("{}", word) for colour in colours]
    clip_skip = learned_clip_skip([embedding])
    with nullcontext() if clip_skip is None else model.text.skipping(clip_skip):
        drawn = draw(model, sample, rows, sampling, seed, "drawing" if progress else "")
    training = clip.image_features(images)
    features = clip.image_features(drawn[: n * (1 + len(prompts))]).split(n)
    bare = clip.text_features([without_word(p) for p in prompts])
    edits = [metrics.similarity(f, t[None]) for f, t in zip(features[1:], bare, strict=True)]
    backgrounds = metrics.background_accuracy(drawn[n * (1 + len(prompts)) :], list(colours))
    share = backgrounds.value if colours else None
    low, high = backgrounds.interval
    figures = {
        "placeholder": word,
        "reconstruction": asdict(metrics.similarity(features[0], training)),
        "between_training_pictures": _between(training),
        "editability": asdict(_mean(edits)),
        "editability_by_prompt": dict(zip(prompts, map(asdict, edits), strict=True)),
        "backgrounds": {**asdict(backgrounds), "share": share, "low": low, "high": high},
        "measured": {"samples": n, "seed": seed, **asdict(sampling)},
    }
    if out is not None:
        _write_embedding(figures, embedding, images, drawn, rows[: n * (1 + len(prompts)) : n], out, model)
    return figures


def _write_embedding(
    figures: dict[str, Any],
    embedding: Embedding,
    images: Tensor,
    drawn: Tensor,
    prompts: Sequence[str],
    out: Path,
    model: Any,
) -> None:
    """``drawn``: the samples of each of ``prompts``, one row each, then a picture a colour."""
    n, size = figures["measured"]["samples"], tuple(drawn.shape[-2:])
    shown = images.cpu().float()
    if shown.shape[-2:] != size:
        shown = torch.nn.functional.interpolate(shown, size, mode="bicubic", antialias=True)
    sheets = {
        "Training pictures": save_grid(shown, out / "training.png", columns=n),
        "Samples, a row a prompt": save_grid(drawn[: n * len(prompts)], out / "samples.png", columns=n),
    }
    if len(drawn) > n * len(prompts):
        rest = drawn[n * len(prompts) :]
        sheets["One picture a background"] = save_grid(rest, out / "backgrounds.png", columns=len(rest))
    manifest = {
        **figures["measured"],
        "base_model": model.fingerprint(),
        "embedding": dict(embedding.metadata),
        "versions": versions(),
        "finished": now(),
    }
    write_json(out / "result.json", figures | {"manifest": manifest})
    reconstruction, editability = figures["reconstruction"], figures["editability"]
    obeyed = Share(figures["backgrounds"]["right"], figures["backgrounds"]["n"])
    summary = {
        "reconstruction (CLIP-I)": reconstruction["cosine_of_means"],
        "editability (CLIP-T)": editability["cosine_of_means"],
        "between training pictures": figures["between_training_pictures"],
        "backgrounds obeyed": str(obeyed) if obeyed.n else None,
    }
    compared = [reconstruction, *figures["editability_by_prompt"].values()]
    rows = [
        [prompt, values["cosine_of_means"], values["mean_of_cosines"]]
        for prompt, values in zip(prompts, compared, strict=True)
    ]
    table = Table(
        "Prompts",
        ("prompt", "cosine of means", "mean of cosines"),
        rows,
        "The first row compares the samples with the training pictures, the others compare them with the "
        "prompt without the word.",
    )
    notes = ["How near the word's samples are to the training pictures, and how well prompts bend them."]
    report = EvaluationReport(f"The word {embedding.placeholder}", summary, notes, [table], sheets, manifest)
    write_evaluation_report(report, out / "report.html")


def without_word(prompt: str) -> str:
    """A prompt with its ``{}`` left out, as the paper compares samples with."""
    return " ".join(re.sub(r"\{\}", " ", prompt).split())


def _between(training: Tensor) -> float | None:
    """Mean cosine of different training pictures; ``None`` of a single one."""
    m = len(training)
    if m < 2:
        return None
    return float(((training @ training.T).sum() - m) / (m * (m - 1)))


def _mean(values: Sequence[Similarity]) -> Similarity:
    count = max(1, len(values))
    return Similarity(
        sum(v.cosine_of_means for v in values) / count,
        sum(v.mean_of_cosines for v in values) / count,
    )
