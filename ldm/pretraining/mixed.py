"""Several sources of captioned pictures as one, each with its share of every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.config import instantiate
from ldm.errors import UserError
from ldm.pretraining.sources import Pictures, PictureSource


class MixedPictures:
    """Batches in which every source has its share, rounded to whole pictures.

    Args:
        sources: nodes ``{share: 0.5, target: dotted name, params: {...}}``. Shares are relative: only
            their ratios count.

    Raises:
        UserError: no sources, or a share that is not above zero.
    """

    def __init__(self, sources: Sequence[Mapping[str, Any]]) -> None:
        if not sources:
            raise UserError("MixedPictures has no sources; give a list of {share, target, params}")
        self.sources: list[PictureSource] = []
        shares = []
        for node in sources:
            share = node.get("share", 1.0)
            if not isinstance(share, (int, float)) or not share > 0:
                raise UserError(f"MixedPictures: a share is {share!r}; give a number above 0")
            shares.append(float(share))
            self.sources.append(instantiate({key: v for key, v in node.items() if key != "share"}))
        self.shares_of_sources = [share / sum(shares) for share in shares]
        each = [source.shares / source.shares.sum() for source in self.sources]
        weighed = [share * own for share, own in zip(self.shares_of_sources, each, strict=True)]
        self.shares = torch.cat(weighed)

    def counts(self, n: int) -> list[int]:
        """How many of n pictures each source draws; they sum to n (largest remainders)."""
        exact = [share * n for share in self.shares_of_sources]
        counts = [int(number) for number in exact]
        by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_remainder[: n - sum(counts)]:
            counts[i] += 1
        return counts

    def batch(self, step: int, n: int, seed: int) -> Pictures:
        drawn: list[Pictures] = []
        before = 0  # things of the sources before
        for i, (source, count) in enumerate(zip(self.sources, self.counts(n), strict=True)):
            if count:
                part = source.batch(step, count, seed + 1000 * i)
                drawn.append(part._replace(subjects=part.subjects + before))
            before += len(source.shares)
        captions = [caption for part in drawn for caption in part.captions]
        images = torch.cat([part.images for part in drawn])
        return Pictures(images, captions, torch.cat([part.subjects for part in drawn]))

    def portraits(self, n: int) -> Iterator[Tensor]:
        for source in self.sources:
            yield from source.portraits(n)
