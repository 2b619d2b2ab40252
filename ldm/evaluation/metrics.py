"""Measures of generated pictures: pure functions of pixels and features, with intervals.

Background colours are measured on pixels, by no learned judge. Everything about content takes unit
features (N, D) from any judge (:mod:`ldm.evaluation.clip_judge`). Shares carry Wilson's 95 % interval
(Wilson 1927), means a bootstrap one, because tens of pictures are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.evaluation.colours import COLOUR_NAMES, COLOURS

Z95 = 1.959964
BORDER = 1 / 32  # width of the measured ring, as a part of the picture's side


@dataclass(frozen=True)
class Share:
    """``right`` of ``n``."""

    right: int
    n: int

    @classmethod
    def of(cls, hits: Tensor | Sequence[bool]) -> Share:
        """Of a row of booleans."""
        values = [bool(h) for h in hits]
        return cls(sum(values), len(values))

    @property
    def value(self) -> float:
        """In [0, 1]; NaN of nothing."""
        return self.right / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval; (0, 1) of nothing."""
        if not self.n:
            return 0.0, 1.0
        p, n, z2 = self.value, self.n, Z95**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __add__(self, other: Share) -> Share:
        return Share(self.right + other.right, self.n + other.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({self.right}/{self.n}, 95 % {low:.1%} to {high:.1%})"


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values``, drawn again ``draws`` times.

    The values must be independent of each other: give one a concept, not one a picture.
    """
    table = torch.tensor(values, dtype=torch.float64)
    if not len(table):
        raise ValueError("no values")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(table), (draws, len(table)), generator=generator)
    low, high = table[rows].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)


# ------------------------------------------------------------------------ background colour
def srgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) in [0, 1] -> CIELAB (..., 3) under D65 (CIE 15:2004)."""
    rgb = rgb.double()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    matrix = torch.tensor(to_xyz, dtype=torch.float64, device=rgb.device)
    xyz = linear @ (matrix / matrix.sum(1, keepdim=True)).T  # white is (1, 1, 1)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=0) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def border_pixels(images: Tensor) -> Tensor:
    """The ring of :data:`BORDER` x side pixels along the edges: (N, 3, H, W) -> (N, P, 3)."""
    height, width = images.shape[-2:]
    ring = max(1, round(BORDER * min(height, width)))
    inside = torch.ones(height, width, dtype=torch.bool, device=images.device)
    inside[ring : height - ring, ring : width - ring] = False
    return images[:, :, inside].transpose(1, 2)


def background_colours(images: Tensor, colours: Sequence[str] = COLOUR_NAMES) -> list[str | None]:
    """The named background colour of each picture (N, 3, H, W) in [-1, 1].

    Every pixel of the border ring votes for the nearest of ``colours`` (names of
    :data:`ldm.evaluation.colours.COLOURS`) by CIELAB distance; a colour needs more than half of the
    votes, else the answer is ``None``. So an object may cover a part of the border, and pixels may
    be noisy, but a border of many colours has no name.
    """
    table = srgb_to_lab(torch.tensor([COLOURS[name] for name in colours]) / 255).to(images.device)
    found: list[str | None] = []
    for part in images.split(256):
        pixels = srgb_to_lab(border_pixels(part.float().clamp(-1, 1)).add(1).div(2))  # (n, P, 3)
        nearest = torch.cdist(pixels, table).argmin(-1)  # (n, P)
        votes = torch.nn.functional.one_hot(nearest, len(colours)).sum(1)
        most, winner = votes.max(1)
        major = (2 * most > nearest.shape[1]).tolist()
        found += [colours[i] if ok else None for i, ok in zip(winner.tolist(), major, strict=True)]
    return found


def background_hits(images: Tensor, names: Sequence[str]) -> list[bool]:
    """Whether each picture has the background colour that was asked for."""
    if unknown := set(names) - set(COLOURS):
        raise ValueError(f"{min(unknown)} is no named colour: {', '.join(COLOURS)}")
    return [a == b for a, b in zip(background_colours(images), names, strict=True)]


def background_accuracy(images: Tensor, names: Sequence[str]) -> Share:
    """Share of pictures (N, 3, H, W) whose border has the colour of ``names`` (N,)."""
    return Share.of(background_hits(images, names))


# ------------------------------------------------------------------------ captions, concepts
def caption_rank(
    image_features: Tensor,
    text_features: Tensor,
    labels: Tensor,
    candidates: Tensor | None = None,
) -> Tensor:
    """Rank of the right caption of each picture, 1 is best.

    Args:
        image_features: (N, D), unit.
        text_features: (C, D), unit.
        labels: (N,) index of the right text.
        candidates: (N, M) indices of the texts that a picture is compared with, the right one
            among them; ``None``: all of them.

    Returns:
        (N,) int64. A tie counts against the picture, and so does a NaN.
    """
    cosines = image_features @ text_features.T
    labels = labels.to(cosines.device)
    own = cosines.gather(1, labels[:, None])
    if candidates is not None:
        candidates = candidates.to(cosines.device)
        if not (candidates == labels[:, None]).any(1).all():
            raise ValueError("the right text must be among the candidates")
        cosines = cosines.gather(1, candidates)
    # the right caption is among the rows and not below itself: it counts as the 1
    return (~(cosines < own)).sum(1)


def recall_at_1(ranks: Tensor) -> Share:
    """Share of pictures whose right caption is first."""
    return Share.of(ranks == 1)


def nearest_concept(
    sample_features: Tensor, reference_features: Sequence[Tensor], reduce: str = "mean"
) -> Tensor:
    """Which concept's own pictures are nearest to each sample.

    Args:
        sample_features: (N, D), unit.
        reference_features: of each concept (R_i, D), unit: its training pictures.
        reduce: a concept's closeness is the ``mean`` of the cosines to its pictures (the default
            everywhere: one look-alike background then decides nothing) or their ``max``.

    Returns:
        (N,) int64 indices into ``reference_features``.
    """
    if reduce not in ("mean", "max"):
        raise ValueError(f"reduce is mean or max, not {reduce!r}")
    columns = []
    for reference in reference_features:
        cosines = sample_features @ reference.T
        columns.append(cosines.mean(1) if reduce == "mean" else cosines.amax(1))
    return torch.stack(columns, dim=1).argmax(1)


@dataclass(frozen=True)
class Similarity:
    """CLIP similarity of two sets, in both ways of averaging, which are not comparable.

    Attributes:
        cosine_of_means: the embeddings of each set averaged first (the paper's text).
        mean_of_cosines: the mean over all pairs (the official code).
    """

    cosine_of_means: float
    mean_of_cosines: float


def similarity(first: Tensor, second: Tensor) -> Similarity:
    """Of unit features (N, D) and (M, D).

    CLIP-I, reconstruction: samples against training pictures. CLIP-T, editability: samples of a
    prompt against that prompt without the placeholder.
    """
    a, b = first.double(), second.double()
    means = torch.nn.functional.cosine_similarity(a.mean(0), b.mean(0), dim=0)
    return Similarity(float(means), float((a @ b.T).mean()))


def between(features: Tensor) -> Similarity | None:
    """Of one set of unit features (N, D) with itself, no picture with its own; ``None`` of fewer than two.

    The mean of cosines is over pairs of different rows, the cosine of means is the mean over rows of the
    cosine between a row and the mean of the others.
    """
    n = len(features)
    if n < 2:
        return None
    rows = features.double()
    pairs = (rows @ rows.T).sum() - rows.square().sum()
    others = (rows.sum(0, keepdim=True) - rows) / (n - 1)
    means = torch.nn.functional.cosine_similarity(rows, others, dim=1).mean()
    return Similarity(float(means), float(pairs / (n * (n - 1))))
