"""Figures of experiments beside the protocols': two concepts in one picture, and how even an attribute is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.evaluation.scorers import Score, Scorer

#: Name of the figure of concepts together.
BOTH = "both shown"
#: Name of the figure of an attribute; 1 where every text has as many pictures as any other.
EVENNESS = "attribute evenness"


def together_scores(scorer: Scorer, features: Tensor, references: Sequence[Tensor], kind: str) -> list[Score]:
    """How well two concepts are seen in one picture.

    Of each picture, the mean cosine to the references of either concept is taken, and the lesser one
    counts: a picture of one concept alone has a low figure.

    Args:
        features: (N, D) of the pictures.
        references: (M_i, D) of each concept.
        kind: which pictures the references are.
    """
    likeness = torch.stack([(features.double() @ own.double().T).mean(1) for own in references])
    averaging = "mean over pictures of the lesser mean cosine to the references of the two concepts"
    identity = scorer.identity.measuring(averaging=averaging)
    figure = float(likeness.min(0).values.mean())
    return [Score(scorer.name, BOTH, figure, None, len(features), kind, identity)]


def attribute_scores(scorer: Scorer, features: Tensor, texts: Sequence[str]) -> list[Score]:
    """How an attribute is distributed over pictures: the share of each text, and how even the shares are.

    Every picture counts for the text with the highest cosine. Evenness is the entropy of the shares divided
    by that of equal shares: 0 where all pictures show one value, 1 where all values are as frequent.

    Args:
        features: (N, D) of the pictures.
        texts: one for each value of the attribute.
    """
    nearest = (features.double() @ scorer.text_features(texts).double().T).argmax(1)
    shares = (torch.bincount(nearest, minlength=len(texts)).double() / len(nearest)).tolist()
    entropy = -sum(share * math.log(share) for share in shares if share) / math.log(len(texts))
    averaging = f"shares of nearest texts among: {'; '.join(texts)}"
    identity = scorer.identity.measuring(averaging=averaging, text="the attribute's texts", reads_text=True)
    figures = {
        EVENNESS: entropy,
        **{f"share of {text!r}": share for text, share in zip(texts, shares, strict=True)},
    }
    return [
        Score(scorer.name, name, figure, None, len(features), "", identity)
        for name, figure in figures.items()
    ]
