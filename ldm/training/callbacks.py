"""Lightning callbacks: a progress bar in steps, and what is left as training goes: words, pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm import interrupt
from ldm.io.images import grid, save_png, to_pil
from ldm.sampling.sample import BrokenPictures
from ldm.training.dashboard import Dashboard, Shot
from ldm.training.limits import due

log = logging.getLogger(__name__)


class StepProgressBar(TQDMProgressBar):
    """A bar over optimiser batches of the whole run; the data stream has no epochs.

    Attributes:
        shown: numbers beside the bar, already on the host.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=10, leave=True)
        self.shown: dict[str, float] = {}

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {**super().get_metrics(trainer, pl_module), **self.shown}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._count(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._count(trainer)

    def _count(self, trainer: pl.Trainer) -> None:
        bar = self.train_progress_bar
        bar.set_description("training")
        if trainer.max_steps > 0:
            bar.total = trainer.max_steps * trainer.accumulate_grad_batches
            bar.initial = trainer.global_step * trainer.accumulate_grad_batches


class ImageLogger(Callback):
    """Draw pictures every ``every`` optimiser steps, save them as PNG and hand them to the loggers.

    Args:
        draw: called with the module; returns named pictures, each (N, 3, H, W) in [-1, 1]. It must
            use its own generators: pictures of different steps are then comparable.
        folder: where ``<name>_<step>.png`` grids go.
        every: in optimiser steps; also drawn at step 0 and at the end. 0 draws nothing.
        columns: pictures a row of the grid.
        prompts: that the pictures belong to, one each; without them loggers are shown the grid.
        seed: of the pictures' noise.
    """

    def __init__(
        self,
        draw: Callable[[pl.LightningModule], dict[str, Tensor]],
        folder: Path,
        every: int,
        columns: int = 8,
        prompts: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.draw, self.folder, self.every, self.columns = draw, folder, every, columns
        self.prompts, self.seed = tuple(prompts), seed
        self._drawn = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._show(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(trainer, pl_module, ends=True)

    def _show(self, trainer: pl.Trainer, module: pl.LightningModule, *, ends: bool = False) -> None:
        if trainer.is_global_zero and self.due(trainer.global_step, ends=ends):
            self.show(trainer.global_step, module, trainer.loggers)

    def show(self, step: int, module: pl.LightningModule, loggers: Sequence[Logger] = ()) -> None:
        """Draw and save the pictures of ``step``; a signal leaves them out."""
        training = module.training
        module.eval()
        with interrupt.skippable(), torch.no_grad():  # a run that goes on draws them
            try:
                self.keep(step, self.draw(module), loggers)
            except BrokenPictures as error:
                self.leave_out(step, error)
        module.train(training)

    def leave_out(self, step: int, error: BrokenPictures) -> None:
        """Say why there are no pictures of ``step``; what is learned is none the worse for it."""
        self._drawn = step
        log.warning("no pictures of step %d: %s", step, error)

    def due(self, step: int, *, ends: bool = False) -> bool:
        """Whether there are to be pictures of ``step``, and none have been kept; ``ends``: training does."""
        return step != self._drawn and due(step, self.every, ends=ends)

    def keep(self, step: int, pictures: dict[str, Tensor], loggers: Sequence[Logger] = ()) -> None:
        """Save the pictures of ``step`` and hand them to the loggers."""
        shots: list[Shot] = []
        for name, images in pictures.items():
            sheet = grid(images, self.columns)
            save_png(sheet, self.folder / f"{name}_{step:06d}.png")
            if len(images) == len(self.prompts):
                each = zip(self.prompts, images, strict=True)
                shots += [Shot(prompt, self.seed, step, to_pil(image)) for prompt, image in each]
            else:
                shots.append(Shot(name, self.seed, step, sheet))
        Dashboard(loggers).pictures(shots)
        self._drawn = step
