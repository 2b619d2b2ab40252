"""How a word looks step by step: reconstruction and editability of each of its embeddings, and the best one.

All embeddings draw the same prompts from the same noise, so that two steps differ in the word alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.evaluation import metrics
from ldm.evaluation.scorers import Scorer
from ldm.evaluation.scorers.protocols import picture_features
from ldm.evaluation.word import EDIT_PROMPTS, RECONSTRUCTION_PROMPT, without_word
from ldm.io.atomic import file_sha256, write_json
from ldm.io.embeddings import load_embeddings, save_embeddings
from ldm.io.images import save_grid
from ldm.io.runs import now, versions
from ldm.io.tables import write_csv
from ldm.report.curves import line_chart
from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report
from ldm.sampling import prompts as words_of
from ldm.sampling.sample import Sampling, sample

FOLDER = "curve"
BEST = "best.safetensors"


@dataclass(frozen=True)
class Moment:
    """A word after so many steps.

    Attributes:
        step: optimiser steps.
        near: of each picture of the neutral prompt, the mean cosine to the references.
        follows: of each picture of an edit, the cosine to its text; empty if the scorer reads no text.
    """

    step: int
    near: tuple[float, ...]
    follows: tuple[float, ...]

    @property
    def reconstruction(self) -> float:
        """Mean of cosines, as the official evaluator averages."""
        return sum(self.near) / len(self.near)

    @property
    def editability(self) -> float | None:
        """Mean of cosines over all edits."""
        return sum(self.follows) / len(self.follows) if self.follows else None

    @property
    def product(self) -> float:
        """Reconstruction times editability: a word is as good as it is near *and* follows prompts."""
        return self.reconstruction * (1.0 if self.editability is None else self.editability)


@dataclass(frozen=True)
class Prompts:
    """What is drawn of every embedding; ``n`` pictures of each prompt."""

    neutral: str = RECONSTRUCTION_PROMPT
    edits: tuple[str, ...] = EDIT_PROMPTS
    n: int = 4
    seed: int = 0

    def rows(self, called: str) -> list[str]:
        """All prompts, the neutral ones first, with the word in them."""
        prompts = [self.neutral, *self.edits]
        return [prompt.replace("{}", called) for prompt in prompts for _ in range(self.n)]


def draw(model: LatentDiffusion, saved: Path, called: str, prompts: Prompts, sampling: Sampling) -> Tensor:
    """The pictures (P x n, 3, H, W) of the words in an embedding file.

    Args:
        model: that they were learned on; what it knows of them is left as it is.
        called: what ``{}`` stands for.
    """
    own = model.with_own_words()
    words = words_of.load([saved])
    for word in words:
        if word.placeholder in own.manager.placeholders:
            own.remove_placeholder(word.placeholder)
    words_of.teach(own, words)
    return sample(
        own,
        prompts=prompts.rows(called),
        seed=prompts.seed,
        steps=sampling.steps,
        sampler=sampling.sampler,
        scale=sampling.scale,
    ).cpu()


def measure(step: int, pictures: Tensor, prompts: Prompts, scorer: Scorer, references: Tensor) -> Moment:
    """The figures of the pictures that :func:`draw` returned; ``references`` are features (R, D)."""
    features = scorer.image_features(pictures)
    near = (features[: prompts.n] @ references.T).mean(1)
    follows = torch.empty(0)
    if scorer.reads_text and prompts.edits:
        texts = scorer.text_features([without_word(prompt) for prompt in prompts.edits])
        follows = (features[prompts.n :] * texts.repeat_interleave(prompts.n, dim=0)).sum(1)
    return Moment(step, tuple(near.tolist()), tuple(follows.tolist()))


def best(moments: Sequence[Moment]) -> Moment:
    """The one with the highest product of reconstruction and editability, the first of equals."""
    return max(moments, key=lambda moment: (moment.product, -moment.step))


def decline(moments: Sequence[Moment]) -> Moment | None:
    """Where it starts to look bad: from there on every later embedding is worse than the best one.

    Worse means that reconstruction or editability lies below the best one's with a 95 % interval (bootstrap
    over pictures of the same prompt and noise) that does not reach 0. ``None``: there is no such step.
    """
    top = best(moments)
    found = None
    for moment in reversed([one for one in moments if one.step > top.step]):
        if not (_below(moment.near, top.near) or _below(moment.follows, top.follows)):
            break
        found = moment
    return found


def _below(values: Sequence[float], of: Sequence[float]) -> bool:
    if len(values) < 2:
        return False
    return metrics.bootstrap([a - b for a, b in zip(values, of, strict=True)])[1] < 0


def rows(moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """A row for each embedding, for tables; ``mark`` names the best one and where the decline starts."""
    top, bad = best(moments), decline(moments)
    return [
        {
            "step": moment.step,
            "reconstruction": moment.reconstruction,
            "editability": moment.editability,
            "product": moment.product,
            "mark": "best" if moment is top else "starts to look bad" if moment is bad else "",
        }
        for moment in moments
    ]


@dataclass(frozen=True)
class Curve:
    """What became of a run: its moments, the best one, where it starts to look bad, and the files."""

    moments: tuple[Moment, ...]
    best: Moment
    decline: Moment | None
    kept: Path
    report: Path


class CurveFolder:
    """The moments of a run, in the folder ``curve`` of the run.

    Args:
        run: the run's folder.
        scorer: whose features are compared.
        references: the pictures that reconstruction is measured against,
        kind: and which they are.
        called: what ``{}`` stands for.
        prompts, sampling: what is drawn of each embedding, and how.
    """

    def __init__(
        self,
        run: Path,
        scorer: Scorer,
        references: Sequence[Path],
        kind: str,
        called: str,
        prompts: Prompts,
        sampling: Sampling,
    ) -> None:
        self.run, self.folder, self.scorer, self.kind = run, run / FOLDER, scorer, kind
        self.called, self.prompts, self.sampling = called, prompts, sampling
        self._references = picture_features(scorer, references)
        hashes = [file_sha256(path) for path in references]
        self._how = [asdict(prompts), asdict(sampling), scorer.identity.as_dict(), hashes, called]

    def _key(self, saved: Path) -> str:
        text = json.dumps([self._how, file_sha256(saved)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def known(self, step: int, saved: Path) -> Moment | None:
        """The moment of an embedding that was scored in this very way before."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((self.folder / f"{step}.json").read_text(encoding="utf-8"))
            if found["key"] == self._key(saved) and self._sheet(step).is_file():
                return Moment(step, tuple(found["near"]), tuple(found["follows"]))
        return None

    def keep(self, step: int, saved: Path, pictures: Tensor) -> Moment:
        """Score the pictures of an embedding, and keep both."""
        moment = measure(step, pictures, self.prompts, self.scorer, self._references)
        save_grid(pictures, self._sheet(step), columns=self.prompts.n)
        write_json(self.folder / f"{step}.json", {"key": self._key(saved), **asdict(moment)})
        return moment

    def _sheet(self, step: int) -> Path:
        return self.folder / f"samples_{step}.png"

    def write(self, saved: Mapping[int, Path]) -> Curve:
        """Write the table, the report and ``best.safetensors``.

        Args:
            saved: step -> embedding file, of those that have been scored.
        """
        found = [(step, self.known(step, path)) for step, path in sorted(saved.items())]
        moments = tuple(moment for _, moment in found if moment is not None)
        top, bad = best(moments), decline(moments)
        kept = save_embeddings(load_embeddings(saved[top.step]), self.run / BEST)
        table = rows(moments)
        write_csv(table, self.folder / "table.csv")
        marks = [(float(top.step), "best")] + ([(float(bad.step), "looks bad")] if bad else [])
        charts = {}
        for name in ("reconstruction", "editability", "product"):
            points = [(float(row["step"]), row[name]) for row in table if row[name] is not None]
            if points:
                charts[name] = line_chart(name, points, marks=marks)
        note = (
            "Reconstruction: mean cosine between pictures of the neutral prompt and the reference pictures "
            f"({self.kind}). Editability: mean cosine between pictures of an edit and its text without the "
            "word. The best step has the highest product of both. It starts to look bad where this and every "
            "later step lies below the best one in either figure, by a 95 % interval over pictures of the "
            "same noise."
        )
        columns = ("step", "reconstruction", "editability", "product", "mark")
        report = EvaluationReport(
            title=f"{self.run.name}, step by step",
            summary={
                "best step": top.step,
                "reconstruction there": top.reconstruction,
                "editability there": top.editability,
                "starts to look bad": bad.step if bad else "at no step",
                "scorer": self.scorer.name,
            },
            notes=[
                f"Each of {len(moments)} embeddings drew {self.prompts.n} pictures a prompt, a row a prompt."
            ],
            tables=[Table("Steps", columns, [[row[name] for name in columns] for row in table], note)],
            sheets={
                f"Step {row['step']}{', ' if row['mark'] else ''}{row['mark']}": self._sheet(row["step"])
                for row in table
            },
            manifest={
                "scorer": self.scorer.identity.as_dict(),
                "prompts": asdict(self.prompts),
                "sampling": asdict(self.sampling),
                "versions": versions(),
                "finished": now(),
            },
            charts=charts,
        )
        page = write_evaluation_report(report, self.folder / "report.html")
        return Curve(moments, top, bad, kept, page)
