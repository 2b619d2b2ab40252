"""The pictures that a cell is judged by: which prompts, which noise, and where they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor

from ldm import interrupt
from ldm._version import __version__
from ldm.backbone.model import LatentDiffusion
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.drawing import colour_prompt
from ldm.evaluation.word import without_word
from ldm.experiments.concepts import GridConcept
from ldm.experiments.config import ScoreConfig
from ldm.experiments.draws import FROM_NOISE, DrawConfig, Start, say, start
from ldm.experiments.ranking import Ranker
from ldm.io.embeddings import Embedding
from ldm.io.images import save_png
from ldm.io.pictures import load_picture
from ldm.io.recipes import Edit, Recipe, to_text
from ldm.sampling.sample import Sampling, sample, usual_batch

Kind = Literal["neutral", "edit", "background", "together"]


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        index: its noise is that of (the concept's seed, index).
        number, sample: of its prompt, and which of the prompt's pictures it is; both count from 0.
        prompt: with ``{}`` for the word, or ``{0}`` and ``{1}`` for those of two concepts.
        kind: what it is scored as.
        text: what it is compared with by scorers that read text.
        colour: of the background that was asked for, if any.
    """

    index: int
    number: int
    sample: int
    prompt: str
    kind: Kind
    text: str
    colour: str | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.number:02d}_{self.sample:02d}.png"


def shots(score: ScoreConfig, concept: GridConcept) -> list[Shot]:
    """All pictures of a cell of this concept, in the order in which they are drawn."""

    def text(prompt: str) -> str:
        if score.protocol == "dreambench" and concept.class_word:
            bare = prompt.replace(f"{{}} {concept.class_word}", "{}")  # it may stand there already
            return " ".join(bare.replace("{}", concept.class_word).split())
        return without_word(prompt)

    rows: list[tuple[str, Kind, str | None, int]] = []
    if concept.members:
        rows = [(prompt, "together", None, score.samples) for prompt in score.together]
    elif score.protocol == "paper":
        rows += [(prompt, "neutral", None, score.samples) for prompt in score.neutral]
    if not concept.members:
        rows += [(prompt, "edit", None, score.samples) for prompt in score.edits(concept.prompts)]
    if score.backgrounds and not concept.members:
        rows += [(colour_prompt(colour), "background", colour, 1) for colour in COLOUR_NAMES]
    found: list[Shot] = []
    for number, (prompt, kind, colour, count) in enumerate(rows):
        found += [Shot(len(found) + i, number, i, prompt, kind, text(prompt), colour) for i in range(count)]
    return found


def noise_seed(score: ScoreConfig, concept: str, seed: int) -> int:
    """Of the pictures of a concept and training seed: the same in every setup."""
    digest = hashlib.sha256(f"{score.seed} {concept} {seed}".encode()).digest()
    return int.from_bytes(digest[:3], "big")


@dataclass(frozen=True)
class Album:
    """The pictures of one cell, in a folder.

    Attributes:
        folder: where they are.
        shots: which they are.
        seed: of their noise.
        sampling: how they are drawn.
        model: its name, for their recipes.
    """

    folder: Path
    shots: tuple[Shot, ...]
    seed: int
    sampling: Sampling
    model: str

    @property
    def files(self) -> list[Path]:
        """In the order of ``shots``."""
        return [self.folder / shot.name for shot in self.shots]

    @property
    def complete(self) -> bool:
        """Whether all have been drawn."""
        return all(path.is_file() for path in self.files)

    def draw(
        self,
        model: LatentDiffusion,
        words: Sequence[Embedding],
        called: str | Sequence[str],
        how: DrawConfig = FROM_NOISE,
        concept: GridConcept | None = None,
    ) -> None:
        """Draw what is missing, a batch at a time.

        A batch that is there in part is drawn anew, so that every picture comes from the same batch whenever
        the work was stopped.

        Args:
            model: knows ``words``.
            called: what ``{}`` stands for; of two concepts, what ``{0}`` and ``{1}`` stand for.
            how: what pictures start from, and how many candidates there are.
            concept: whose pictures are; needed unless ``how`` is the usual.

        Raises:
            UserError: a picture that cannot be drawn or read.
        """
        if self.complete:
            return
        names = (called,) if isinstance(called, str) else tuple(called)
        begin = Start() if concept is None else start(
            model, how, concept, self.folder, names, self.sampling, words
        )  # fmt: skip
        ranker = None
        if concept is not None and how.candidates > 1:
            ranker = Ranker.named(how.ranked_by, concept.pictures())
        n = how.candidates
        size = max(1, usual_batch(model.image_size) // n)
        for first in range(0, len(self.shots), size):
            batch = self.shots[first : first + size]
            if all((self.folder / shot.name).is_file() for shot in batch):
                continue
            interrupt.check()
            prompts = [say(shot.prompt, names) for shot in batch for _ in range(n)]
            draws = [(self.seed, shot.index + j * len(self.shots)) for shot in batch for j in range(n)]
            drawn = sample(
                model,
                prompts=prompts,
                draws=draws,
                steps=self.sampling.steps,
                sampler=self.sampling.sampler,
                scale=self.sampling.scale,
                precision=self.sampling.precision,
                source=begin.source,
                x_T=begin.x_T,
            )
            for i, shot in enumerate(batch):
                own = drawn[i * n : (i + 1) * n]
                text = None if shot.kind == "neutral" else shot.text
                row = i * n + (0 if ranker is None else ranker.best(own, text))
                place = _Place(prompts[row], draws[row][1], row, len(prompts), begin.edit)
                self._keep(drawn[row], shot, place, model, words)

    def copy(self, pictures: Sequence[Path], size: int) -> None:
        """Take these pictures in turn for what would be drawn, as squares of ``size`` pixels.

        Raises:
            UserError: one that cannot be read.
        """
        for shot, path in zip(self.shots, cycle(pictures), strict=False):
            if not (self.folder / shot.name).is_file():
                save_png(load_picture(path, size), self.folder / shot.name)

    def _keep(
        self, picture: Tensor, shot: Shot, place: _Place, model: LatentDiffusion, words: Sequence[Embedding]
    ) -> None:
        recipe = Recipe(
            prompt=place.prompt,
            negative_prompt="",
            seed=self.seed,
            index=place.noise,
            sampler=self.sampling.sampler,
            steps=self.sampling.steps,
            scale=float(self.sampling.scale),
            precision=self.sampling.precision,
            eta=0.0,
            size=model.image_size,
            model=self.model,
            base_model=model.fingerprint(),
            version=f"ldm {__version__}",
            batch_row=place.row,
            batch_rows=place.rows,
            embeddings=tuple(words),
            edit=place.edit,
            clip_skip=model.text.other_clip_skip,
        )
        save_png(picture, self.folder / shot.name, to_text(recipe))


class _Place(NamedTuple):
    """Where a picture comes from: its prompt, its noise, its row in the batch, and the picture behind it."""

    prompt: str
    noise: int
    row: int
    rows: int
    edit: Edit | None
