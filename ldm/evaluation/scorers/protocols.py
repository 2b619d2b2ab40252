"""Which figures a published protocol takes of a concept's pictures, as rows with ceiling and identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.evaluation import metrics
from ldm.evaluation.scorers.base import NetworkScorer, Scorer
from ldm.evaluation.scorers.identity import (
    COSINE_OF_MEANS,
    MEAN_OF_COSINES,
    TRAINING,
    Score,
    require_same,
)
from ldm.evaluation.scorers.metrics import WITH_CLASS, Ceiling, ImageSimilarity, TextSimilarity

#: Pixels of the shorter side that a file keeps at least; only a huge JPEG is decoded smaller than it is.
_SIDE = 1024
#: Figures by name: the paper (Gal et al. 2022) and its evaluator average in different ways.
PAPER = {"paper": COSINE_OF_MEANS, "official evaluator": MEAN_OF_COSINES}


def picture_features(scorer: Scorer, pictures: Tensor | Sequence[Path]) -> Tensor:
    """Features (N, D) of tensors (N, 3, H, W) in [-1, 1], or of files as they are.

    Files go through the scorer's own transform alone, which keeps their size and shape until then; a scorer
    that reads tensors gets the middle square of each.
    """
    if isinstance(pictures, Tensor):
        return scorer.image_features(pictures)
    from ldm.io.decode import decode
    from ldm.io.pictures import load_picture

    if isinstance(scorer, NetworkScorer):
        return scorer.picture_features([decode(path, _SIDE, (255, 255, 255), True) for path in pictures])
    size = int(getattr(scorer, "image_size", 224))
    return scorer.image_features(torch.stack([load_picture(path, size) for path in pictures]))


def paper_scores(
    scorer: Scorer,
    neutral: Tensor,
    edits: Mapping[str, Tensor],
    references: Tensor | Sequence[Path],
    *,
    kind: str = TRAINING,
) -> list[Score]:
    """Reconstruction and editability (Gal et al. 2022, section 4.7), each averaged in both ways.

    Args:
        neutral: samples of the neutral prompt, pictures or features; compared with the references.
        edits: text without the placeholder -> samples of its prompt; unused by a scorer that reads no text.
        references: the pictures that reconstruction is measured against; ``kind`` says which they are,
            :data:`HELD_OUT` or :data:`TRAINING`.
    """
    real = _as_features(scorer, references)
    samples = _as_features(scorer, neutral)
    scores = [
        _image_score(scorer, f"reconstruction ({name})", averaging, samples, real, kind)
        for name, averaging in PAPER.items()
    ]
    if not scorer.reads_text or not edits:
        return scores
    features = {text: _as_features(scorer, images) for text, images in edits.items()}
    for name, averaging in PAPER.items():
        metric = TextSimilarity(scorer, averaging)
        for text, rows in features.items():
            metric.update(rows, [text] * len(rows))
        n = sum(len(rows) for rows in features.values())
        figure = float(metric.compute())
        scores.append(Score(scorer.name, f"editability ({name})", figure, None, n, "", metric.identity))
    return scores


def dreambench_scores(
    scorer: Scorer,
    samples: Tensor | Sequence[Path],
    texts: Sequence[str],
    references: Tensor | Sequence[Path],
    *,
    kind: str = TRAINING,
    text: str = WITH_CLASS,
) -> list[Score]:
    """CLIP-I and CLIP-T, or DINO-I, of all samples of a subject (Ruiz et al. 2023, section 4.1).

    Args:
        samples: of every prompt, pictures, features or files.
        texts: the text of each sample, which the identity calls ``text``; unused by a scorer that reads none.
        references: real pictures of the subject, ``kind`` as for :func:`paper_scores`.
    """
    real, rows = _as_features(scorer, references), _as_features(scorer, samples)
    name = "CLIP-I" if scorer.reads_text else "DINO-I"
    scores = [_image_score(scorer, name, MEAN_OF_COSINES, rows, real, kind)]
    if scorer.reads_text:
        metric = TextSimilarity(scorer, MEAN_OF_COSINES, text)
        metric.update(rows, texts)
        figure = float(metric.compute())
        scores.append(Score(scorer.name, "CLIP-T", figure, None, len(rows), "", metric.identity))
    return scores


def paired_difference(
    ours: Mapping[str, Score], baseline: Mapping[str, Score]
) -> tuple[float, tuple[float, float]]:
    """Mean difference of the same concepts' figures, with its 95 % interval by bootstrap over concepts.

    Args:
        ours, baseline: concept -> its score, of one metric.

    Raises:
        UserError: the scores cannot be compared.
        ValueError: the concepts differ.
    """
    if set(ours) != set(baseline):
        raise ValueError(f"the concepts differ: {sorted(set(ours) ^ set(baseline))}")
    require_same([*ours.values(), *baseline.values()])
    differences = [ours[concept].figure - baseline[concept].figure for concept in sorted(ours)]
    return sum(differences) / len(differences), metrics.bootstrap(differences)


def _as_features(scorer: Scorer, pictures: Tensor | Sequence[Path]) -> Tensor:
    if isinstance(pictures, Tensor) and pictures.ndim == 2:
        return pictures
    return picture_features(scorer, pictures)


def _image_score(
    scorer: Scorer, name: str, averaging: str, samples: Tensor, real: Tensor, kind: str
) -> Score:
    metric, ceiling = ImageSimilarity(scorer, averaging), Ceiling(scorer, averaging)
    metric.update(samples)
    metric.update(real, real=True)
    ceiling.update(real)
    top = float(ceiling.compute()) if len(real) > 1 else None
    return Score(scorer.name, name, float(metric.compute()), top, len(samples), kind, metric.identity)
