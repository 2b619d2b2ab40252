"""Log scalars without a device sync.

A GPU works through a queue of operations. A program that reads the loss of the step that it has just queued
waits until that step is done, and then the GPU waits until more is queued. Scalars are therefore copied in
the background, and read when they have arrived, some steps later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.errors import UserError


class _Pending(NamedTuple):
    step: int
    names: tuple[str, ...]
    values: Tensor  # on the host, filled when
    copied: torch.cuda.Event | None  # has happened; on a CPU it is filled at once
    known: Mapping[str, float] = {}  # logged beside them


class LateLosses:
    """Scalars of the steps, for the loggers, the progress bar and the check that they are finite.

    On a CPU a step's values are known at once; on a GPU when it has come to them, while the host goes
    on: a loss that is not finite is then told a step or a few later, and before anything is saved.
    """

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()
        self._logged = -1

    def put(self, step: int, scalars: Mapping[str, Tensor], known: Mapping[str, float] | None = None) -> None:
        """Note a step's scalars by their names in the logs; ``known`` are on the host already."""
        values = torch.stack([value.detach().float() for value in scalars.values()])
        host = values.to("cpu", non_blocking=True)
        copied = None
        if values.is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        self._pending.append(_Pending(step, tuple(scalars), host, copied, known or {}))

    def report(self, loggers: Sequence[Logger], every: int, *, wait: bool = False) -> dict[str, float]:
        """Log what has arrived of every ``every``-th step; ``wait`` for what has not.

        Returns:
            The newest values that have arrived; nothing if none have since the last call.

        Raises:
            UserError: a value is not finite.
        """
        arrived: dict[str, float] = {}
        while self._pending:
            step, names, values, copied, known = self._pending[0]
            if copied is not None:
                if wait:
                    copied.synchronize()
                elif not copied.query():
                    break
            self._pending.popleft()
            arrived = dict(zip(names, values.tolist(), strict=True))
            if not all(map(math.isfinite, arrived.values())):
                raise UserError(
                    f"the loss is not finite at step {step}; lower the learning rate, or use precision "
                    "32-true"
                )
            if (step + 1) % every == 0 and step != self._logged:  # of accumulated batches, the first one's
                self._logged = step
                for logger in loggers:
                    logger.log_metrics({**arrived, **known}, step=step)
        return arrived
