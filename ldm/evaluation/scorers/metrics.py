"""The figures of published protocols as ``torchmetrics`` metrics over a scorer's features.

Each metric gathers features over batches and processes, and calls the definitions of
:mod:`ldm.evaluation.metrics`; its ``identity`` says what two figures must share to be compared. Pictures are
(N, 3, H, W) in [-1, 1], or (N, D), the features that the scorer gave of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.retrieval import retrieval_average_precision
from torchmetrics.utilities import dim_zero_cat

from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.metrics import Share
from ldm.evaluation.scorers.base import Scorer
from ldm.evaluation.scorers.identity import COSINE_OF_MEANS, MEAN_OF_COSINES, Identity

#: Texts that pictures are compared with, by the protocol that uses them.
WITHOUT_PLACEHOLDER = "the prompt without the placeholder"
WITH_CLASS = "the prompt with the class word alone"
AVERAGINGS = (COSINE_OF_MEANS, MEAN_OF_COSINES)


class ImageSimilarity(Metric):
    """How near samples are to reference pictures.

    With a CLIP scorer and the cosine of means this is the paper's reconstruction, with the mean of cosines
    the official evaluator's, which later work calls CLIP-I; with a DINO scorer it is DINO-I.

    Args:
        scorer: whose features are compared.
        averaging: :data:`COSINE_OF_MEANS` or :data:`MEAN_OF_COSINES`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    samples: list[Tensor]
    references: list[Tensor]

    def __init__(self, scorer: Scorer, averaging: str = MEAN_OF_COSINES, **options: Any) -> None:
        super().__init__(**options)
        self.scorer, self.averaging = scorer, _known(averaging)
        self.add_state("samples", default=[], dist_reduce_fx="cat")
        self.add_state("references", default=[], dist_reduce_fx="cat")

    @property
    def identity(self) -> Identity:
        """Of the figure."""
        return self.scorer.identity.measuring(averaging=self.averaging)

    def update(self, images: Tensor, real: bool = False) -> None:
        """Add samples, or reference pictures if they are ``real``."""
        (self.references if real else self.samples).append(_features(self.scorer, images))

    def compute(self) -> Tensor:
        """The figure, in [-1, 1]."""
        samples, references = _rows(self.samples, "samples"), _rows(self.references, "references")
        return _pick(metrics.similarity(samples, references), self.averaging)


class Ceiling(Metric):
    """How near reference pictures are to each other: what :class:`ImageSimilarity` is read against.

    The mean of cosines is taken over pairs of different pictures. The cosine of means compares each picture
    with the mean of the others, so that no picture is compared with itself; samples are averaged before they
    are compared, one picture is not, and good samples can therefore lie above it.

    Args: as :class:`ImageSimilarity`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    references: list[Tensor]

    def __init__(self, scorer: Scorer, averaging: str = MEAN_OF_COSINES, **options: Any) -> None:
        super().__init__(**options)
        self.scorer, self.averaging = scorer, _known(averaging)
        self.add_state("references", default=[], dist_reduce_fx="cat")

    @property
    def identity(self) -> Identity:
        """Of the figure."""
        return self.scorer.identity.measuring(averaging=self.averaging)

    def update(self, images: Tensor) -> None:
        """Add reference pictures."""
        self.references.append(_features(self.scorer, images))

    def compute(self) -> Tensor:
        """The figure, in [-1, 1]; NaN of a single picture."""
        between = metrics.between(_rows(self.references, "references"))
        return torch.tensor(float("nan")) if between is None else _pick(between, self.averaging)


class TextSimilarity(Metric):
    """How near samples are to a text: the paper's editability, and CLIP-T.

    The figure of each text is taken first, then the mean over texts, so that every prompt has the same
    weight.

    Args:
        scorer: whose features are compared; it must read texts.
        averaging: :data:`COSINE_OF_MEANS` is the paper's, :data:`MEAN_OF_COSINES` the official evaluator's
            and CLIP-T's.
        text: which text a prompt gives, for the identity.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    samples: list[Tensor]
    texts: list[Tensor]
    groups: list[Tensor]

    def __init__(
        self,
        scorer: Scorer,
        averaging: str = MEAN_OF_COSINES,
        text: str = WITHOUT_PLACEHOLDER,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not scorer.reads_text:
            raise UserError(f"{scorer.name} reads no text: use a clip:... scorer to compare with prompts")
        self.scorer, self.averaging, self.text = scorer, _known(averaging), text
        self.add_state("samples", default=[], dist_reduce_fx="cat")
        self.add_state("texts", default=[], dist_reduce_fx="cat")
        self.add_state("groups", default=[], dist_reduce_fx="cat")

    @property
    def identity(self) -> Identity:
        """Of the figure."""
        return self.scorer.identity.measuring(averaging=self.averaging, text=self.text, reads_text=True)

    def update(self, images: Tensor, texts: Sequence[str]) -> None:
        """Add samples with the text of each, N of both."""
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} pictures and {len(texts)} texts")
        different = list(dict.fromkeys(texts))
        rows = dict(zip(different, self.scorer.text_features(different), strict=True))
        features = _features(self.scorer, images)
        self.samples.append(features)
        self.texts.append(torch.stack([rows[text] for text in texts]))
        self.groups.append(torch.tensor([_number(text) for text in texts], device=features.device))

    def compute(self) -> Tensor:
        """The figure, in [-1, 1]."""
        samples, texts = _rows(self.samples, "samples"), _rows(self.texts, "samples")
        groups = dim_zero_cat(self.groups)
        figures = [
            _pick(metrics.similarity(samples[rows], texts[rows][:1]), self.averaging)
            for rows in (groups == group for group in groups.unique())
        ]
        return torch.stack(figures).mean()


class GalleryRetrieval(Metric):
    """Whether a sample is recognised among the reference pictures of all concepts.

    ``first``: the share of samples to which their own concept is the nearest of all, by the mean of cosines
    to its pictures. ``mAP``: all reference pictures are ranked by cosine for each sample, and those of its
    own concept are the right ones. The ceilings put each reference picture in the place of a sample,
    against the other pictures; a concept of a single picture is left out of them.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    samples: list[Tensor]
    wanted: list[Tensor]
    references: list[Tensor]
    labels: list[Tensor]

    def __init__(self, scorer: Scorer, **options: Any) -> None:
        super().__init__(**options)
        self.scorer = scorer
        for state in ("samples", "wanted", "references", "labels"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    @property
    def identity(self) -> Identity:
        """Of the figures."""
        return self.scorer.identity.measuring(averaging=MEAN_OF_COSINES)

    def update(self, images: Tensor, concepts: Sequence[int] | Tensor, real: bool = False) -> None:
        """Add samples, or reference pictures if they are ``real``, with the number of each one's concept."""
        features = _features(self.scorer, images)
        numbers = torch.as_tensor(concepts, dtype=torch.int64, device=features.device)
        if numbers.shape != (len(images),):
            raise ValueError(f"{len(images)} pictures and concepts of shape {tuple(numbers.shape)}")
        (self.references if real else self.samples).append(features)
        (self.labels if real else self.wanted).append(numbers)

    def compute(self) -> dict[str, Tensor]:
        """``first``, ``mAP``, ``ceiling first`` and ``ceiling mAP``, each in [0, 1]."""
        samples, references = _rows(self.samples, "samples"), _rows(self.references, "references")
        wanted, labels = dim_zero_cat(self.wanted), dim_zero_cat(self.labels)
        if missing := set(wanted.tolist()) - set(labels.tolist()):
            raise ValueError(f"no reference pictures of concept {min(missing)}")
        first, precision = _retrieve(samples, wanted, references, labels)
        real = [
            _retrieve(references[i : i + 1], labels[i : i + 1], references[others], labels[others])
            for i, others in ((i, _all_but(i, len(labels))) for i in range(len(labels)))
            if (labels[others] == labels[i]).any()
        ]
        nothing = torch.tensor([float("nan")])
        return {
            "first": first.mean(),
            "mAP": precision.mean(),
            "ceiling first": torch.cat([a for a, _ in real] or [nothing]).mean(),
            "ceiling mAP": torch.cat([b for _, b in real] or [nothing]).mean(),
        }


class BackgroundColours(Metric):
    """The share of pictures whose border has the colour that was asked for; no judge is involved."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("right", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor, colours: Sequence[str]) -> None:
        """Add pictures with the named colour of each."""
        share = metrics.background_accuracy(images, colours)
        self.right = self.right + share.right
        self.total = self.total + share.n

    def compute(self) -> Tensor:
        """The share, in [0, 1]; NaN of nothing."""
        return torch.tensor(self.share.value)

    @property
    def share(self) -> Share:
        """The same with its counts and its interval, of this process."""
        return Share(int(self.right), int(self.total))


def _features(scorer: Scorer, images: Tensor) -> Tensor:
    return images if images.ndim == 2 else scorer.image_features(images)


def _known(averaging: str) -> str:
    if averaging not in AVERAGINGS:
        raise ValueError(f"averaging is one of {AVERAGINGS}, not {averaging!r}")
    return averaging


def _pick(similarity: metrics.Similarity, averaging: str) -> Tensor:
    both = {COSINE_OF_MEANS: similarity.cosine_of_means, MEAN_OF_COSINES: similarity.mean_of_cosines}
    return torch.tensor(both[averaging], dtype=torch.float64)


def _rows(state: Any, what: str) -> Tensor:
    if isinstance(state, list) and not state:
        raise ValueError(f"no {what} were given")
    return dim_zero_cat(state)


def _number(text: str) -> int:
    """A number that stands for a text in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _all_but(i: int, n: int) -> Tensor:
    return torch.tensor([j for j in range(n) if j != i], dtype=torch.int64)


def _retrieve(samples: Tensor, wanted: Tensor, references: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample: whether its concept is the nearest, and its average precision; both (N,)."""
    concepts = labels.unique()
    gallery = [references[labels == concept] for concept in concepts]
    first = concepts[metrics.nearest_concept(samples, gallery)] == wanted
    cosines = samples @ references.T
    precision = [
        retrieval_average_precision(row, labels == concept)
        for row, concept in zip(cosines, wanted, strict=True)
    ]
    return first.double(), torch.stack(precision).double()
