"""The best of several candidates, chosen by a scorer (Gal et al. 2022, section 4.7)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ldm.evaluation.scorers import Scorer, load_scorer
from ldm.evaluation.scorers.protocols import picture_features


class Ranker:
    """Chooses among pictures by likeness to references and, where there is a text, to the text.

    Both likenesses are cosines of the scorer's features, and count alike.

    Args:
        scorer: whose features they are.
        references: pictures of the concept.
    """

    def __init__(self, scorer: Scorer, references: Sequence[Path]) -> None:
        self.scorer = scorer
        self._references = picture_features(scorer, references).double()

    @classmethod
    def named(cls, name: str, references: Sequence[Path]) -> Ranker:
        """By a scorer's name; its weights must be here.

        Raises:
            UserError: an unknown name, or weights that are not here.
        """
        return cls(_scorer(name), references)

    def best(self, pictures: Tensor, text: str | None = None) -> int:
        """The row of the best one.

        Args:
            pictures: (N, 3, H, W) in [-1, 1].
            text: what they shall show beside the concept.
        """
        features = self.scorer.image_features(pictures).double()
        score = (features @ self._references.T).mean(1)
        if text and self.scorer.reads_text:
            score = score + features @ self.scorer.text_features([text]).double()[0]
        return int(torch.argmax(score))


@lru_cache(maxsize=1)
def _scorer(name: str) -> Scorer:
    return load_scorer(name)
