"""The pictures that a cell is judged by: which prompts, which noise, and where they are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ldm import interrupt
from ldm._version import __version__
from ldm.backbone.model import LatentDiffusion
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.drawing import colour_prompt
from ldm.evaluation.word import without_word
from ldm.experiments.concepts import GridConcept
from ldm.experiments.config import ScoreConfig
from ldm.io.embeddings import Embedding
from ldm.io.images import save_png
from ldm.io.recipes import Recipe, to_text
from ldm.sampling.sample import Sampling, sample, usual_batch

Kind = Literal["neutral", "edit", "background"]


@dataclass(frozen=True)
class Shot:
    """One picture.

    Attributes:
        index: its noise is that of (the concept's seed, index).
        number, sample: of its prompt, and which of the prompt's pictures it is; both count from 0.
        prompt: with ``{}`` for the word.
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
    if score.protocol == "paper":
        rows += [(prompt, "neutral", None, score.samples) for prompt in score.neutral]
    rows += [(prompt, "edit", None, score.samples) for prompt in score.edits(concept.prompts)]
    if score.backgrounds:
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

    def draw(self, model: LatentDiffusion, words: Sequence[Embedding], called: str) -> None:
        """Draw what is missing, a batch at a time.

        A batch that is there in part is drawn anew, so that every picture comes from the same batch whenever
        the work was stopped.

        Args:
            model: knows ``words``.
            called: what ``{}`` stands for.
        """
        size = usual_batch(model.image_size)
        for start in range(0, len(self.shots), size):
            batch = self.shots[start : start + size]
            if all((self.folder / shot.name).is_file() for shot in batch):
                continue
            interrupt.check()
            prompts = [shot.prompt.replace("{}", called) for shot in batch]
            drawn = sample(
                model,
                prompts=prompts,
                draws=[(self.seed, shot.index) for shot in batch],
                steps=self.sampling.steps,
                sampler=self.sampling.sampler,
                scale=self.sampling.scale,
            )
            for row, (shot, prompt, picture) in enumerate(zip(batch, prompts, drawn, strict=True)):
                self._keep(picture, shot, prompt, model, words, row, len(batch))

    def _keep(
        self,
        picture: Tensor,
        shot: Shot,
        prompt: str,
        model: LatentDiffusion,
        words: Sequence[Embedding],
        row: int,
        rows: int,
    ) -> None:
        recipe = Recipe(
            prompt=prompt,
            negative_prompt="",
            seed=self.seed,
            index=shot.index,
            sampler=self.sampling.sampler,
            steps=self.sampling.steps,
            scale=float(self.sampling.scale),
            eta=0.0,
            size=model.image_size,
            model=self.model,
            base_model=model.fingerprint(),
            version=f"ldm {__version__}",
            batch_row=row,
            batch_rows=rows,
            embeddings=tuple(words),
            clip_skip=model.text.other_clip_skip,
        )
        save_png(picture, self.folder / shot.name, to_text(recipe))
