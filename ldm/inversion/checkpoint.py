"""What a checkpoint of an inversion holds, whoever trains it: Lightning's Trainer or a pack.

====================================  ==================================================================
key                                   value
====================================  ==================================================================
``state_dict``                        what trains: the words, and with ``model_lr`` UNet and text encoder
``base_model``                        fingerprint of the frozen weights
``global_step``                       optimiser steps made
``optimizer_states``                  of the one optimiser
``lr_schedulers``                     of the one schedule
``callbacks``                         by their names: what was measured, how long it took, and a user's own
``MixedPrecision``                    the scale of the loss, in 16-mixed alone
``loops``                             what Lightning counts: batches and steps
``epoch``                             0
``pytorch-lightning_version``         the version whose names these are
====================================  ==================================================================

It is a checkpoint of Lightning's, and small, since batches and noise follow from the step. A run that was
begun in a pack goes on alone, and the other way round, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import Precision

from ldm.training.fit import LAST, AtomicCheckpoints

#: with ``compat.vectors_only``, all that is kept
VECTORS_ONLY = ("state_dict", "base_model")


def of_steps(
    step: int,
    accumulate: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    precision: Precision,
    callbacks: Mapping[str, Any],
) -> dict[str, Any]:
    """The part of a checkpoint that Lightning writes by itself for a run of its own."""
    content = {
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": pl.__version__,
        "loops": loops_at(step, accumulate),
        "callbacks": dict(callbacks),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
    }
    scale = precision.state_dict()
    return {**content, type(precision).__qualname__: scale} if scale else content


def loops_at(step: int, accumulate: int) -> dict[str, Any]:
    """The state of Lightning's loops after ``step`` > 0 optimiser steps of ``accumulate`` batches, as it is
    where the last batch ends."""
    batches = step * accumulate
    steps = {"ready": step, "completed": step}
    done = {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def twice(counts: dict[str, int]) -> dict[str, dict[str, int]]:  # the stream of batches is one epoch
        return {"total": dict(counts), "current": dict(counts)}

    optimizer = {"step": twice(steps), "zero_grad": twice({**steps, "started": step})}
    return {
        "fit_loop": {
            "epoch_loop.state_dict": {"_batches_that_stepped": step - 1},
            "epoch_loop.batch_progress": {**twice(done), "is_last_batch": False},
            "epoch_loop.scheduler_progress": twice(steps),
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
            "epoch_progress": twice(begun),
        }
    }


def write(run: Path, content: Mapping[str, Any], before: int | None = None) -> None:
    """Write ``last.ckpt`` of a run folder.

    Args:
        before: the step of the whole ``last.ckpt`` that is there, which stays as the only ``step=N.ckpt``.
    """
    last = run / LAST
    if before is not None and last.is_file():
        kept = last.with_name(f"step={before}.ckpt")
        os.replace(last, kept)
        for older in last.parent.glob("step=*.ckpt"):
            if older != kept:
                older.unlink()
    AtomicCheckpoints().save_checkpoint(dict(content), last)
