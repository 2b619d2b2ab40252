"""What Lightning does beside the steps of an inversion: measures the loss, stops, keeps the embedding."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.errors import UserError
from ldm.inversion.step import Draw, Part, measure
from ldm.inversion.stopping import StopRule
from ldm.io.embeddings import save_embeddings
from ldm.io.runs import RunFolder
from ldm.training.dashboard import Dashboard
from ldm.training.limits import due, saves
from ldm.words.files import embedding_of
from ldm.words.start import nearest_words

log = logging.getLogger(__name__)

# an untrained network returns about 0 for a target of unit variance, so its loss is about 1
UNTRAINED_LOSS = 0.95


class FixedBatchMonitor(Callback):
    """Measures what tells a word's progress: loss on a fixed batch, norm, distance, nearest words.

    The loss of single steps says nothing (its noise is larger than its trend); on fixed pictures,
    captions, timesteps and noise it can be compared between steps (DVAR, arXiv 2302.04841), and a
    run can stop where it no longer falls.

    Args:
        every: in optimiser steps.
        size: fixed samples, drawn by the run's own rule at steps that training never reaches, and
            measured a training batch at a time, so that this needs no more memory than a step; by default
            ``SAMPLES``, or with a rule to stop ``SAMPLES_TO_STOP``.
        allow_untrained: do not refuse a base model whose loss looks untrained,
        warn_untrained: but say so.
        stop: when a run ends before its last step (``ldm.inversion.stopping``); ``None`` is never.
    """

    def __init__(
        self,
        every: int,
        size: int | None = None,
        allow_untrained: bool = False,
        stop: StopRule | None = None,
        warn_untrained: bool = False,
    ) -> None:
        self.every, self.size = every, size or (SAMPLES_TO_STOP if stop else SAMPLES)
        self.allow_untrained, self.warn_untrained = allow_untrained, warn_untrained
        self.stop = stop
        self.history: list[dict[str, Any]] = []
        self._fixed: list[Draw] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]

    @property
    def converged(self) -> bool:
        """Whether the rule ends the run here."""
        if self.stop is None or not self.history:
            return False
        return self.stop([row["step"] for row in self.history], [row["fixed_loss"] for row in self.history])

    def _stop_if_converged(self, trainer: pl.Trainer) -> None:
        # together: a process that goes on would wait for the others for ever
        stop = trainer.strategy.reduce_boolean_decision(self.converged, all=False)
        trainer.should_stop = trainer.should_stop or stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(trainer, pl_module)
        self._stop_if_converged(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if due(trainer.global_step, self.every):
            self._measure(trainer, pl_module)
            self._stop_if_converged(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, module: Any) -> None:
        context = trainer.precision_plugin.forward_context()
        self.measure(trainer.global_step, module, context, trainer.loggers)

    @torch.no_grad()
    def measure(
        self,
        step: int,
        module: Any,
        context: AbstractContextManager[Any],
        loggers: Sequence[Logger] = (),
    ) -> None:
        """Add the row of ``step`` to the history, once; ``context`` is the precision of the loss.

        Raises:
            UserError: at the first step, a base model that looks untrained; later, numbers that exploded.
        """
        if self.history and self.history[-1]["step"] >= step:
            return
        self._fixed = self._fixed or module.objective.fixed(self.size)
        with context:
            loss = float(measure(module.model, [Part(module.objective, draw, step) for draw in self._fixed]))
        if not self.history and not self.allow_untrained and loss > UNTRAINED_LOSS:
            found = f"the base model's loss on these pictures is {loss:.2f}, like that of an untrained one"
            if not self.warn_untrained:
                raise UserError(
                    f"{found}; check its checkpoint (stop.allow_untrained=true goes on regardless)"
                )
            log.warning("%s; training goes on (strict=false)", found)
        manager, table = module.manager, module.model.text.token_table
        row: dict[str, Any] = {"step": step, "fixed_loss": loss}
        measures = {"norm": manager.norms(step), "distance_to_init": manager.distance_to_init(step)}
        for what, of in measures.items():
            row |= {f"{what}/{name}": float(values.mean()) for name, values in of.items()}
        self._refuse_exploded(step, loss, measures["norm"], table)
        self.history.append(row)
        dashboard = Dashboard(loggers)
        dashboard.scalars({k: v for k, v in row.items() if k != "step"}, step)
        for name in manager.trained:
            words = nearest_words(manager.vectors(name, step), table, module.model.text.tokenizer.decode_id)
            row[f"nearest/{name}"] = [[n.word, round(n.cosine, 3)] for n in words[0]]
        before = self.history[-2] if len(self.history) > 1 else {}
        nearest = {name: row[f"nearest/{name}"] for name in manager.trained}
        known = {name: before.get(f"nearest/{name}", []) for name in nearest}
        if any(_names(nearest[name]) != _names(known[name]) for name in nearest):
            dashboard.words(nearest, step)

    def _refuse_exploded(self, step: int, loss: float, norms: dict[str, Tensor], table: Tensor) -> None:
        """Numbers that no training comes back from are an error, and no result.

        Raises:
            UserError: the loss is not finite or beyond ``EXPLODED_LOSS``, or a word is more than
                ``EXPLODED`` times as long as the vocabulary's.
        """
        if not self.history:  # its start, which is the user's
            return
        what = "precision 32-true, or a lower learning rate (optim.lr, model_lr)"
        if not math.isfinite(loss):
            raise UserError(f"the loss is not finite at step {step}; use {what}")
        usual = float(table.float().norm(dim=-1).median())
        for name, values in norms.items():
            longest = float(values.max())
            if not longest <= EXPLODED * usual:
                raise UserError(
                    f"{name} exploded: at step {step} its |v*| is {longest:.2g}, that of the vocabulary's "
                    f"words {usual:.2g}; use {what}"
                )
        if loss > EXPLODED_LOSS:
            raise UserError(f"the loss is {loss:.2g} at step {step}, where guessing gives 1; use {what}")


def _names(nearest: Sequence[Any]) -> list[str]:
    """The words of a row of nearest words and cosines."""
    return [word for word, _ in nearest]


class StopByScore(Callback):
    """Ends a run of its own where its scores say so; of several processes, the one that scores tells all.

    Args:
        converged: whether this process has seen that it ends here.
        every: in optimiser steps, how often the word is scored.
    """

    def __init__(self, converged: Callable[[], bool], every: int) -> None:
        self.converged, self.every = converged, every

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        if due(trainer.global_step, self.every):
            stop = trainer.strategy.reduce_boolean_decision(self.converged(), all=False)
            trainer.should_stop = trainer.should_stop or stop


class EmbeddingCheckpoint(Callback):
    """Write ``checkpoints/embeddings_gs-<step>`` beside every resumable checkpoint and at the end.

    Args:
        words: placeholders of the module's manager.
        details: a word, optimiser step -> metadata.
        every: in optimiser steps.
        formats: "safetensors", and "pt" for the official layout. As the official code does, the
            newest one is ``embeddings.pt`` too, from the start on: a name that such a file cannot hold
            is then refused before the work and not after it.
    """

    def __init__(
        self,
        run: RunFolder,
        words: Sequence[str],
        details: Callable[[str, int], dict[str, str]],
        every: int,
        formats: Sequence[str] = ("safetensors",),
    ) -> None:
        self.run, self.words, self.details, self.every = run, words, details, every
        self.formats = formats
        self._written = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "pt" in self.formats:
            self._save("embeddings.pt", trainer.global_step, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if saves(trainer.global_step, self.every):
            self.save(trainer.global_step, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer.global_step, pl_module)

    def path(self, step: int) -> Path:
        """The file of the words of ``step``, in the first of the formats."""
        return self.run.path / "checkpoints" / f"embeddings_gs-{step}.{self.formats[0]}"

    def save(self, step: int, module: pl.LightningModule) -> None:
        """Write the words as they are at ``step``, in every format."""
        if step == self._written:
            return
        self._written = step
        for suffix in self.formats:
            self._save(f"embeddings_gs-{step}.{suffix}", step, module)
        if "pt" in self.formats:
            self._save("embeddings.pt", step, module)

    def _save(self, name: str, step: int, module: pl.LightningModule) -> None:
        embeddings = [
            embedding_of(module.manager, word, self.details(word, step), step)  # type: ignore[arg-type]
            for word in self.words
        ]
        save_embeddings(embeddings, self.run.file("checkpoints", name))


#: A word so many times as long as the vocabulary's median word, or so high a loss, is a failure and no
#: result. Words of plain inversion come to 50 times that length.
EXPLODED, EXPLODED_LOSS = 1000.0, 100.0


#: Samples of the fixed batch: 8 are enough for a curve and take 2 % of the time. A rule to stop needs 32, for
#: 7 % of the time: near the end the loss falls by 0.0004 in 25 steps, and between fixed batches it differs by
#: 0.002 with 8 samples and by 0.0006 with 32 (estimates on ``emoji``).
SAMPLES, SAMPLES_TO_STOP = 8, 32
