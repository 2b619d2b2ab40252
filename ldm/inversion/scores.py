"""Scores while a word is learned (``stop.score_every``): how near its pictures are, and how they obey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.device import device_of
from ldm.evaluation.curve import Curve, CurveFolder, Moment, Prompts, draw
from ldm.evaluation.scorers import HELD_OUT, TRAINING, Scorer, load_scorer
from ldm.inversion.callbacks import EmbeddingCheckpoint
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig
from ldm.inversion.stopping import ScoreRule, score_rule
from ldm.io.pictures import list_pictures
from ldm.io.runs import RunFolder
from ldm.sampling.sample import Sampling
from ldm.training.callbacks import ImageLogger
from ldm.training.dashboard import Dashboard
from ldm.training.limits import due


class ScoreLogger(ImageLogger):
    """Draw the prompts of ``ldm evaluate curve``, score them, keep the embedding, and log both figures.

    Args:
        curve: the run's folder of scores.
        keeper: saves the embedding that is scored.
        model: that it is learned on.
        every: in optimiser steps; also at step 0 and at the end.
        stop: when a run ends before its last step; ``None`` is never.

    Attributes:
        converged: whether the rule ended the run at the step that was scored last.
    """

    def __init__(
        self,
        curve: CurveFolder,
        keeper: EmbeddingCheckpoint,
        model: LatentDiffusion,
        every: int,
        stop: ScoreRule | None = None,
    ) -> None:
        super().__init__(self._pictures, curve.folder, every)
        self.curve, self.keeper, self.model, self.stop = curve, keeper, model, stop
        self.converged = False
        self._step = 0

    def show(self, step: int, module: pl.LightningModule, loggers: Sequence[Logger] = ()) -> None:
        """Save, draw and score the word as it is at ``step``; a signal leaves it out."""
        self._step = step
        self.keeper.save(step, module)
        if self.curve.known(step, self.keeper.path(step)) is None:  # of a run that goes on, it may be
            super().show(step, module, loggers)
        if self.stop is not None:  # by the files: a run that goes on stops where it would have stopped
            known = [one.product for at, one in self._moments() if at <= step and due(at, self.every)]
            self.converged = self.stop(known)

    def keep(self, step: int, pictures: dict[str, Tensor], loggers: Sequence[Logger] = ()) -> None:
        """Score the pictures of ``step``, and hand the figures to the loggers."""
        moment = self.curve.keep(step, self.keeper.path(step), pictures["curve"])
        figures = {"score/reconstruction": moment.reconstruction}
        if moment.editability is not None:
            figures["score/editability"] = moment.editability
        Dashboard(loggers).scalars(figures, step)
        self._drawn = step

    def write(self) -> Curve | None:
        """The report of all steps that were scored, and ``best.safetensors``; ``None`` if there are none."""
        scored = {step: self.keeper.path(step) for step, _ in self._moments()}
        return self.curve.write(scored) if scored else None

    def _moments(self) -> list[tuple[int, Moment]]:
        """Every step that has been scored in this very way, and its figures, in their order."""
        steps = sorted(int(path.stem) for path in self.curve.folder.glob("*.json"))
        known = ((step, self.curve.known(step, self.keeper.path(step))) for step in steps)
        return [(step, moment) for step, moment in known if moment is not None]

    def _pictures(self, _: pl.LightningModule) -> dict[str, Tensor]:
        curve, saved = self.curve, self.keeper.path(self._step)
        return {"curve": draw(self.model, saved, curve.called, curve.prompts, curve.sampling)}


def score_logger(
    run: RunFolder,
    model: LatentDiffusion,
    concept: Concept,
    config: InversionConfig,
    keeper: EmbeddingCheckpoint,
) -> ScoreLogger:
    """The callback of a run whose ``stop.score_every`` is not 0.

    Raises:
        UserError: the scorer is unknown, or its weights are not here.
    """
    references, kind = list(concept.paths), TRAINING
    if config.train_pictures is not None:
        every = list_pictures(config.images, replace(config.framing(), first=None))
        references, kind = every[config.train_pictures :], HELD_OUT
    scorer = shared_scorer(config.stop.scorer, config)
    show = config.show
    sampling = Sampling.of(model, steps=show.steps, sampler=show.sampler, scale=show.scale)
    curve = CurveFolder(run.path, scorer, references, kind, config.called, Prompts(), sampling)
    return ScoreLogger(curve, keeper, model, config.stop.score_every, score_rule(config.stop))


def shared_scorer(name: str, config: InversionConfig) -> Scorer:
    """A scorer on the device of the run, one for all members of a pack.

    Raises:
        UserError: it is unknown, or its weights are not here.
    """
    return _scorer(name, str(device_of(config.trainer.accelerator)))


@lru_cache(maxsize=2)  # who scores, and who chooses the start
def _scorer(name: str, device: str) -> Scorer:
    return load_scorer(name, device)
