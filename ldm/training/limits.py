"""When something is due beside the steps of a training, and when the training ends."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback


def due(step: int, every: int, *, ends: bool = False) -> bool:
    """Whether what is done every ``every`` optimiser steps (0: never) is done now.

    Args:
        step: optimiser steps made.
        ends: the training ends here, where everything is done once more.
    """
    return bool(every) and (ends or step % every == 0)


def saves(step: int, every: int, *, ends: bool = False) -> bool:
    """:func:`due`, for what is saved: nothing before the first step, but at the end in any case."""
    return ends or step > 0 and due(step, every)


def too_late(seconds: float, max_minutes: float | None) -> bool:
    """Whether a training has used up its time."""
    return max_minutes is not None and seconds >= 60 * max_minutes


class TimeLimit(Callback):
    """Counts the seconds of a training, over all its parts if it is resumed, and stops it in time.

    Args:
        max_minutes: ``None``: no limit.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self._before, self._began = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Of the training by now."""
        return self._before + (time.monotonic() - self._began if self._began else 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        self._stop(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop(trainer)

    def _stop(self, trainer: pl.Trainer) -> None:
        if self.max_minutes is None:
            return
        # together: a process that goes on would wait for the others for ever
        late = trainer.strategy.broadcast(too_late(self.seconds, self.max_minutes))
        trainer.should_stop = trainer.should_stop or late
