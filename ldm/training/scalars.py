"""Losses as the host comes to know them: reading one at once would make it wait for the device.

A GPU works through a queue. A host that asks for the loss of the step it has just queued stands still
until that step is done, and the GPU then stands still until it is given more.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.training.callbacks import StepProgressBar


class _Pending(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: Tensor  # on the host, filled when
    copied: torch.cuda.Event | None  # has happened; on a CPU it is filled at once


class LateLosses:
    """Scalars of the steps, for the loggers, the progress bar and the check that they are finite.

    On a CPU a step's values are known at once; on a GPU when it has come to them, while the host goes
    on: a loss that is not finite is then told a step or a few later, and before anything is saved.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()
        self._logged = -1

    def put(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Note a step's scalars by their names in the logs."""
        values = torch.stack([value.detach().float() for value in scalars.values()])
        host = values.to("cpu", non_blocking=True)
        copied = None
        if values.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append(_Pending(step, tuple(scalars), host, copied))

    def report(self, trainer: pl.Trainer, *, wait: bool = False) -> None:
        """Log what has arrived, every ``log_every_n_steps``; ``wait`` for what has not.

        Raises:
            UserError: a value is not finite.
        """
        while self._pending:
            step, names, values, copied = self._pending[0]
            if copied is not None:
                if wait:
                    copied.synchronize()
                elif not copied.query():
                    return
            self._pending.popleft()
            known = dict(zip(names, values.tolist(), strict=True))
            if not all(map(math.isfinite, known.values())):
                raise UserError(
                    f"the loss is not finite at step {step}; lower the learning rate, or use precision "
                    "32-true"
                )
            self._show(trainer, step, known)

    def _show(self, trainer: pl.Trainer, step: int, known: dict[str, float]) -> None:
        bar = trainer.progress_bar_callback
        if isinstance(bar, StepProgressBar):
            bar.shown = known
        due = (step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due and step != self._logged:  # of accumulated batches, the first one's
            self._logged = step
            for logger in trainer.loggers:
                logger.log_metrics(known, step=step)
