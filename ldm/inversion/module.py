"""Textual Inversion as a LightningModule: everything is frozen but v* (Gal et al. 2022, section 3).

``L = E || target - f_theta(z_t, t, c(y)) ||^2`` is minimised over the placeholder's vectors alone;
the gradient passes through the frozen UNet and text transformer and reaches nothing else.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.checkpoint import VECTORS_ONLY
from ldm.inversion.step import Draw, Objective, Part, losses
from ldm.io import checkpoints
from ldm.io.checkpoints import read_torch
from ldm.training import optim
from ldm.training.callbacks import StepProgressBar
from ldm.training.scalars import LateLosses
from ldm.training.stream import StepStream
from ldm.words.manager import EmbeddingManager

log = logging.getLogger(__name__)


class TextualInversion(pl.LightningModule):
    """Learns the vectors of one concept's placeholder(s).

    Args:
        objective: what is minimised. All of its model is frozen here but the manager, whose v* must have been
            added.
        optim_config: the optimiser; its ``lr`` is the base rate,
        lr: the effective one.
        max_steps: optimiser steps, for the schedule.
        model_lr: learning rate of UNet and text conditioner, which then train as well (pivotal tuning,
            appendix A): these two are what ``unfreeze_model`` trains in the official code. 0: frozen.
        vectors_only: keep nothing but the vectors in checkpoints (``CompatConfig``).
    """

    def __init__(
        self,
        objective: Objective,
        optim_config: optim.OptimConfig,
        *,
        lr: float,
        max_steps: int,
        model_lr: float = 0.0,
        vectors_only: bool = False,
    ) -> None:
        super().__init__()
        model = objective.model
        self.base_fingerprint = model.fingerprint()  # before a cast loses bits
        self.model = model.freeze()
        if model_lr:
            model.unfreeze()
        self.objective = objective
        self.optim_config, self.lr, self.max_steps = optim_config, lr, max_steps
        self.model_lr, self.vectors_only = model_lr, vectors_only
        self.losses = LateLosses()
        self.strict_loading = False  # a run's checkpoint holds what trains, the manager as a rule

    @property
    def autoencoder(self) -> nn.Module:
        return self.model.autoencoder

    @property
    def unet(self) -> nn.Module:
        return self.model.unet

    @property
    def text(self) -> nn.Module:
        return self.model.text

    @property
    def manager(self) -> EmbeddingManager:
        return self.model.manager

    def train_dataloader(self) -> Any:
        first = self.trainer.global_step * self.trainer.accumulate_grad_batches
        return StepStream(lambda number: self.objective.draw(number).part(self.share), first).loader()

    def configure_optimizers(self) -> Any:
        words = self.manager.trained_words()
        groups: list[dict[str, Any]] = [{"params": [p for word in words for p in word.parameters()]}]
        if self.model_lr:
            tuned = [*self.unet.parameters(), *self.text.parameters()]
            groups.append({"params": tuned, "lr": self.model_lr})
        return optim.configure(groups, self.optim_config, self.max_steps, self.lr, words=words)

    @property
    def share(self) -> slice:
        """This process's part of a batch. All draw the same one, and take equal parts: the mean of their
        gradients, which DDP makes, is the gradient of the whole batch."""
        size = self.objective.batches.batch_size // self.trainer.world_size
        return slice(self.global_rank * size, (self.global_rank + 1) * size)

    def training_step(self, batch: Draw, batch_idx: int) -> Tensor:
        (loss,) = losses(self.model, [Part(self.objective, batch, self.global_step)])
        # of the whole batch, everywhere: a loss that is not finite stops all processes at the same step
        mean = self.trainer.strategy.reduce(loss.scalars["train/loss"], reduce_op="mean")
        self.losses.put(self.global_step, {**loss.scalars, "train/loss": mean})
        self.report_losses(wait=self.trainer.world_size > 1)
        return loss.total

    def report_losses(self, *, wait: bool = False) -> None:
        """Log and show the losses that have arrived; ``wait`` for those that have not.

        Raises:
            UserError: one is not finite.
        """
        trainer = self.trainer
        shown = self.losses.report(trainer.loggers, trainer.log_every_n_steps, wait=wait)  # type: ignore[attr-defined]
        bar = trainer.progress_bar_callback
        if shown and isinstance(bar, StepProgressBar):
            bar.shown = shown

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.manager.prepare_gradients(self.global_step)

    def on_train_end(self) -> None:
        self.report_losses(wait=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.report_losses(wait=True)  # nothing that is not finite is kept
        self.complete(checkpoint)

    def complete(self, checkpoint: dict[str, Any]) -> None:
        """Make a checkpoint what ``checkpoint.py`` says, of one that holds the whole ``state_dict``: it keeps
        what trains and what resumes it, kilobytes but for a tuned model."""
        trained = ("model.manager.", *(("model.unet.", "model.text.") if self.model_lr else ()))
        own = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in own.items() if k.startswith(trained)}
        checkpoint["base_model"] = self.base_fingerprint
        if self.vectors_only:
            for key in checkpoint.keys() - {*VECTORS_ONLY}:
                del checkpoint[key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("base_model") != self.base_fingerprint:
            raise UserError("this run was made with another base model; give the model it was started with")

    def take_vectors(self, path: Path) -> None:
        """Start from the vectors of a checkpoint, with all else anew.

        Raises:
            UserError: it is damaged, or of another base model.
        """
        try:
            checkpoint = read_torch(path)
            self.on_load_checkpoint(checkpoint)
            self.load_state_dict(checkpoint["state_dict"], strict=False)
        except UserError:
            raise
        except Exception as error:  # readers raise nearly anything on broken bytes
            raise UserError(f"{path} is damaged; remove it, and the word is learned anew") from error


def frozen_hash(model: LatentDiffusion) -> str:
    """Hash of the raw bytes of all that must not move; equal means bit-identical."""
    return checkpoints.fingerprint(model.parts, exact=True)
