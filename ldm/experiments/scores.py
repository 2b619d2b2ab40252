"""Figures of kept pictures: a file for each cell and scorer, so that nothing is drawn or scored twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.scorers import Identity, Score, Scorer, load_scorer
from ldm.evaluation.scorers.metrics import GalleryRetrieval
from ldm.evaluation.scorers.protocols import dreambench_scores, paper_scores, picture_features
from ldm.experiments.concepts import GridConcept
from ldm.experiments.measures import attribute_scores, together_scores
from ldm.experiments.plan import Cell, Plan
from ldm.experiments.shots import Album
from ldm.io.atomic import write_json
from ldm.io.pictures import load_picture
from ldm.io.runs import slug

#: The judge of backgrounds, which needs no network.
BORDER = "border pixels"
BORDER_IDENTITY = Identity(
    architecture="border pixels",
    weights="none",
    preprocessing=f"ring of {metrics.BORDER:.4g} of a side; most pixels' nearest named colour in CIELAB",
    averaging="share",
)
#: Scorers that were used beside those of the YAML, in the experiment's folder.
MORE = "scorers.json"


def load_scorers(
    names: Sequence[str], device: str = "cpu", *, allow_download: bool = False
) -> dict[str, Scorer]:
    """Scorers by name.

    Raises:
        UserError: an unknown name, or weights that are not here.
    """
    return {name: load_scorer(name, device, allow_download=allow_download) for name in names}


def more_scorers(plan: Plan) -> dict[str, Identity]:
    """Name -> identity, of the scorers that were used beside those of the YAML."""
    with suppress(OSError, ValueError, UserError):
        kept = json.loads((plan.out / MORE).read_text(encoding="utf-8"))
        return {name: Identity.from_dict(row) for name, row in kept.items()}
    return {}


class Scoring:
    """Scores the cells of a plan by one scorer.

    Args:
        plan: whose pictures and references are looked at.
        scorer: the judge; ``None`` measures backgrounds alone.
    """

    def __init__(self, plan: Plan, scorer: Scorer | None) -> None:
        self.plan, self.scorer = plan, scorer
        self.name = BORDER if scorer is None else scorer.name
        self.identity = BORDER_IDENTITY if scorer is None else scorer.identity
        self._references: dict[str, Tensor] = {}

    def path(self, cell: Cell) -> Path:
        """The file of a cell's figures."""
        return score_path(self.plan, cell, self.name, self.identity)

    def score(self, cell: Cell) -> list[Score]:
        """The figures of a cell whose pictures are there, from its file if it has one."""
        found = read_scores(self.path(cell))
        if found is None:
            found = self._measure(cell)
            rows = [score.as_row() for score in found]
            write_json(self.path(cell), {"cell": cell.title, "scores": rows})
        return found

    def _measure(self, cell: Cell) -> list[Score]:
        album, concept = self.plan.album(cell), self.plan.concepts[cell.concept]
        if self.scorer is None:
            return _backgrounds(album)
        features = picture_features(self.scorer, album.files)
        if concept.members:
            real = [self._of(member) for member in self.plan.members(cell)]
            return together_scores(self.scorer, features, real, concept.kind)
        references = self._of(concept)
        if self.plan.config.score.protocol == "paper":
            scores = _paper(self.scorer, features, album, references, concept.kind)
        else:
            texts = [shot.text for shot in album.shots if shot.kind == "edit"]
            rows = features[[shot.kind == "edit" for shot in album.shots]]
            scores = dreambench_scores(self.scorer, rows, texts, references, kind=concept.kind)
        if self.plan.config.score.retrieval and len(gallery(self.plan)) > 1:
            scores += self._retrieval(features, concept)
        if self.plan.config.score.attribute and self.scorer.reads_text:
            neutral = [shot.kind == "neutral" for shot in album.shots]
            shown = features[neutral] if any(neutral) else features
            scores += attribute_scores(self.scorer, shown, self.plan.config.score.attribute)
        return scores

    def _of(self, concept: GridConcept) -> Tensor:
        assert self.scorer is not None
        if concept.name not in self._references:
            self._references[concept.name] = picture_features(self.scorer, concept.references)
        return self._references[concept.name]

    def _retrieval(self, features: Tensor, concept: GridConcept) -> list[Score]:
        """Whether the pictures are recognised among all concepts of the grid."""
        assert self.scorer is not None
        metric = GalleryRetrieval(self.scorer)
        for number, other in enumerate(gallery(self.plan)):
            real = self._of(other)
            metric.update(real, [number] * len(real), real=True)
            if other.name == concept.name:
                metric.update(features, [number] * len(features))
        figures = {name: float(value) for name, value in metric.compute().items()}
        among = f"{metric.identity.averaging}; among {len(gallery(self.plan))} concepts, {self._gallery}"
        identity = replace(metric.identity, averaging=among)
        return [
            Score(
                self.scorer.name,
                f"retrieval ({name})",
                figures[name],
                None if math.isnan(figures[f"ceiling {name}"]) else figures[f"ceiling {name}"],
                len(features),
                concept.kind,
                identity,
            )
            for name in ("first", "mAP")
        ]

    @cached_property
    def _gallery(self) -> str:
        """Names the reference pictures of all concepts."""
        return gallery_hash(self.plan)[:8]


def gallery(plan: Plan) -> list[GridConcept]:
    """The concepts that a picture is recognised among: all but those that are others together."""
    return [concept for concept in plan.concepts.values() if not concept.members]


def gallery_hash(plan: Plan) -> str:
    """sha256 hex of the references of all concepts."""
    hashes = {concept.name: concept.reference_hashes() for concept in gallery(plan)}
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def score_path(plan: Plan, cell: Cell, name: str, identity: Identity) -> Path:
    """The file of a cell's figures by a scorer; another one for other weights, prompts or references."""
    digest = _digest([identity.as_dict(), cell.score_key])
    return plan.out / "scores" / cell.drawn_name / f"{slug(name, 40)}_{digest}.json"


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def read_scores(path: Path) -> list[Score] | None:
    """What a scores file holds; ``None`` if it is missing or broken."""
    with suppress(OSError, ValueError, KeyError, TypeError, UserError):
        return [Score.from_row(row) for row in json.loads(path.read_text(encoding="utf-8"))["scores"]]
    return None


def _paper(scorer: Scorer, features: Tensor, album: Album, references: Tensor, kind: str) -> list[Score]:
    neutral, edits = [], dict[str, list[int]]()
    for row, shot in enumerate(album.shots):
        if shot.kind == "neutral":
            neutral.append(row)
        elif shot.kind == "edit":
            edits.setdefault(shot.text, []).append(row)
    by_text = {text: features[rows] for text, rows in edits.items()}
    return paper_scores(scorer, features[neutral], by_text, references, kind=kind)


def _backgrounds(album: Album) -> list[Score]:
    asked = [(album.folder / shot.name, shot.colour) for shot in album.shots if shot.colour is not None]
    if not asked:
        return []
    with Image.open(asked[0][0]) as first:
        size = first.width
    pictures = torch.stack([load_picture(path, size) for path, _ in asked])
    share = metrics.background_accuracy(pictures, [colour for _, colour in asked])
    return [Score(BORDER, "backgrounds obeyed", share.value, None, share.n, "", BORDER_IDENTITY)]
