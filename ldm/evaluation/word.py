"""One learned word, measured as section 4.7 of the paper does (Gal et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.evaluation import metrics
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.drawing import SampleFunction, colour_prompt, draw
from ldm.evaluation.metrics import Share
from ldm.evaluation.scorers import (
    COSINE_OF_MEANS,
    HELD_OUT,
    MEAN_OF_COSINES,
    SHIPPED,
    TRAINING,
    Identity,
    Score,
    Scorer,
    load_scorer,
)
from ldm.io.atomic import write_json
from ldm.io.embeddings import Embedding, learned_clip_skip
from ldm.io.images import save_grid
from ldm.io.runs import now, versions
from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report
from ldm.sampling.sample import Sampling
from ldm.words.files import form_of

RECONSTRUCTION_PROMPT = "a photo of {}"
EDIT_PROMPTS = (
    "a photo of {} on the beach",
    "a photo of {} in the snow",
    "a photo of {} on grass",
    "a photo of {} under a night sky",
)


def evaluate_embedding(
    model: LatentDiffusion,
    embedding: Embedding,
    images: Tensor,
    *,
    sample: SampleFunction,
    scorers: Sequence[Scorer | str] = (SHIPPED,),
    references: str = TRAINING,
    allow_download: bool = False,
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
        model, sample: what ``ldm.load`` returned, and ``ldm.sample``; the model knows the word afterwards.
        images: Pictures (M, 3, H, W) in [-1, 1] to compare samples with.
        scorers: Scorers or their names (:func:`ldm.evaluation.scorers.load_scorer`). All of them score the
            same samples.
        references: Which pictures ``images`` are: ``held out``, or ``training pictures``.
        allow_download: Whether a scorer's weights may be fetched.
        n: Samples of each prompt (the paper: 64, which on a CPU takes minutes).
        prompts: Edits, with ``{}`` for the word.
        colours: Each is drawn once; empty: not measured.
        out: Folder for ``result.json``, ``references.png``, ``samples.png``, ``samples/``,
            ``backgrounds.png`` and ``report.html``.

    Returns:
        ``scores``, a row for each scorer and figure (``Score.as_row``): reconstruction and editability as the
        paper and as the official evaluator average them, with ``ceiling`` and the scorer's identity;
        ``by_prompt``, scorer -> prompt -> both averages; ``pictures``, with ``out``, the file of each
        prompt's samples with these averages; ``backgrounds`` with ``share``, ``low``, ``high`` (95 %); and
        how it was measured.
    """
    loaded = [_scorer(scorer, model, allow_download) for scorer in scorers]
    sampling = sampling or Sampling.of(model)
    word = embedding.placeholder
    if word in model.manager.placeholders:
        model.remove_placeholder(word)
    model.add_placeholder(word, embedding.vectors, **form_of(embedding))
    rows = [t.replace("{}", word) for t in (RECONSTRUCTION_PROMPT, *prompts) for _ in range(n)]
    rows += [colour_prompt(colour).replace("{}", word) for colour in colours]
    clip_skip = learned_clip_skip([embedding])
    with nullcontext() if clip_skip is None else model.text.skipping(clip_skip):
        drawn = draw(model, sample, rows, sampling, seed, "drawing" if progress else "")
    samples = drawn[: n * (1 + len(prompts))]
    scores: list[Score] = []
    by_prompt: dict[str, dict[str, Any]] = {}
    for scorer in loaded:
        found, by_prompt[scorer.name] = _score(scorer, samples.split(n), prompts, images, references)
        scores += found
    backgrounds = metrics.background_accuracy(drawn[len(samples) :], list(colours))
    share = backgrounds.value if colours else None
    low, high = backgrounds.interval
    figures = {
        "placeholder": word,
        "scores": [score.as_row() for score in scores],
        "by_prompt": by_prompt,
        "backgrounds": {**asdict(backgrounds), "share": share, "low": low, "high": high},
        "measured": {"samples": n, "seed": seed, **asdict(sampling)},
    }
    figures["pictures"] = []
    if out is not None:
        shown = [(row, drawn[i : i + n]) for i, row in enumerate(rows[: len(samples)]) if i % n == 0]
        _write_embedding(figures, embedding, images, shown, drawn[len(samples) :], out, model)
    return figures


def references_of(embedding: Embedding, hashes: Sequence[str]) -> tuple[list[int], str]:
    """Which of some pictures a word is scored against, and what they are.

    Args:
        embedding: A word that says what it was learned from.
        hashes: sha256 of each picture's file, in order.

    Returns:
        The positions of those that it was not learned from, which are ``held out``; if there are none, of
        all, the ``training pictures``. A word that does not say counts as learned from all.
    """
    learned = set(embedding.metadata.get("image_hashes", "").split(",")) - {""}
    held_out = [i for i, digest in enumerate(hashes) if digest not in learned] if learned else []
    return (held_out, HELD_OUT) if held_out else (list(range(len(hashes))), TRAINING)


def _scorer(scorer: Scorer | str, model: LatentDiffusion, allow_download: bool) -> Scorer:
    if not isinstance(scorer, str):
        return scorer
    device = str(getattr(model, "device", "cpu"))
    return load_scorer(scorer, device, allow_download=allow_download)


def _score(
    scorer: Scorer, samples: Sequence[Tensor], prompts: Sequence[str], images: Tensor, references: str
) -> tuple[list[Score], dict[str, Any]]:
    """Scores of the samples of each prompt, the neutral one first, and both averages by prompt."""
    from ldm.evaluation.scorers.protocols import paper_scores

    real = scorer.image_features(images)
    neutral, *edits = scorer.image_features(torch.cat(list(samples))).split(len(samples[0]))
    by_prompt = {RECONSTRUCTION_PROMPT: asdict(metrics.similarity(neutral, real))}
    if not scorer.reads_text:
        return paper_scores(scorer, neutral, {}, real, kind=references), by_prompt
    texts = [without_word(prompt) for prompt in prompts]
    found = paper_scores(scorer, neutral, dict(zip(texts, edits, strict=True)), real, kind=references)
    for prompt, text, features in zip(prompts, texts, edits, strict=True):
        by_prompt[prompt] = asdict(metrics.similarity(features, scorer.text_features([text])))
    return found, by_prompt


def _write_embedding(
    figures: dict[str, Any],
    embedding: Embedding,
    images: Tensor,
    samples: Sequence[tuple[str, Tensor]],
    backgrounds: Tensor,
    out: Path,
    model: LatentDiffusion,
) -> None:
    """``samples``: of each prompt, (n, 3, H, W); ``backgrounds``: a picture a colour."""
    n, size = len(samples[0][1]), tuple(samples[0][1].shape[-2:])
    shown = images.cpu().float()
    if shown.shape[-2:] != size:
        shown = torch.nn.functional.interpolate(shown, size, mode="bicubic", antialias=True)
    drawn = torch.cat([pictures for _, pictures in samples])
    for i, (prompt, pictures) in enumerate(samples):
        path = save_grid(pictures, out / "samples" / f"{i:02d}.png", columns=n)
        scores = {
            f"{scorer}: {name}": value
            for scorer, by_prompt in figures["by_prompt"].items()
            for values in list(by_prompt.values())[i : i + 1]  # one that reads no text has the first alone
            for name, value in values.items()
        }
        figures["pictures"].append(
            {
                "prompt": prompt,
                "seed": figures["measured"]["seed"],
                "file": str(path.relative_to(out)),
                "scores": scores,
            }
        )
    sheets = {
        "References": save_grid(shown, out / "references.png", columns=n),
        "Samples, a row a prompt": save_grid(drawn, out / "samples.png", columns=n),
    }
    if len(backgrounds):
        sheet = save_grid(backgrounds, out / "backgrounds.png", columns=len(backgrounds))
        sheets["One picture a background"] = sheet
    manifest = {
        **figures["measured"],
        "base_model": model.fingerprint(),
        "embedding": dict(embedding.metadata),
        "versions": versions(),
        "finished": now(),
    }
    write_json(out / "result.json", figures | {"manifest": manifest})
    obeyed = Share(figures["backgrounds"]["right"], figures["backgrounds"]["n"])
    summary = {f"{row['scorer']}: {row['metric']}": row["figure"] for row in figures["scores"]}
    summary["backgrounds obeyed"] = str(obeyed) if obeyed.n else None
    columns = (
        "scorer",
        "metric",
        "figure",
        "ceiling",
        "n",
        "references",
        *(f.name for f in fields(Identity)),
    )
    measures = Table(
        "Scores",
        columns,
        [[row[column] for column in columns] for row in figures["scores"]],
        "The ceiling is the same measure of the references against each other. Figures compare only with "
        "figures whose scorer has the same architecture, weights, preprocessing, text and averaging.",
    )
    rows = [
        [
            scorer,
            prompt.replace("{}", embedding.placeholder),
            values["cosine_of_means"],
            values["mean_of_cosines"],
        ]
        for scorer, by_prompt in figures["by_prompt"].items()
        for prompt, values in by_prompt.items()
    ]
    by_prompt_table = Table(
        "Prompts",
        ("scorer", "prompt", COSINE_OF_MEANS, MEAN_OF_COSINES),
        rows,
        "The first prompt's samples are compared with the references, the others' with the prompt without "
        "the word.",
    )
    notes = ["How near the word's samples are to the references, and how well prompts bend them."]
    title = f"The word {embedding.placeholder}"
    report = EvaluationReport(title, summary, notes, [measures, by_prompt_table], sheets, manifest)
    write_evaluation_report(report, out / "report.html")


def without_word(prompt: str) -> str:
    """A prompt with its ``{}`` left out, as the paper compares samples with."""
    return " ".join(re.sub(r"\{\}", " ", prompt).split())
