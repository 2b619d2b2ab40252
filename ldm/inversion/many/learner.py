"""A concept among others: what Lightning's Trainer does for a run of its own, for a member of a pack."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.resume import is_whole, refuse_fewer_steps
from ldm.inversion.run import packed_checkpoints
from ldm.inversion.step import Part, losses
from ldm.inversion.task import Inversion
from ldm.io.atomic import atomic_write
from ldm.io.checkpoints import read_torch
from ldm.io.claims import claimed
from ldm.sampling.sample import BrokenPictures
from ldm.training.fit import close_loggers, pack_loggers

log = logging.getLogger(__name__)


class Gradients(NamedTuple):
    """Of a concept's parameters by its own micro-batch, and what is logged of its loss."""

    of: tuple[Tensor, ...]
    scalars: dict[str, Tensor]


class Learner:
    """A concept among others: keeps what Lightning's Trainer keeps for a run of its own.

    Args:
        task: the inversion, in a run folder.
        device: where its vectors live, beside the frozen weights.
        resume: go on from the run folder's checkpoint, if there is one.

    Attributes:
        step: optimiser steps done.
        seconds: its share of the time that its packs took.
    """

    def __init__(self, task: Inversion, device: torch.device, *, resume: bool = False) -> None:
        assert task.run is not None and task.keeper is not None
        self.task, self.config, self.run, self.keeper = task, task.config, task.run, task.keeper
        self.module = task.module.to(device)
        configured = self.module.configure_optimizers()
        self.optimizer: torch.optim.Optimizer = configured["optimizer"]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scheduler = configured["lr_scheduler"]["scheduler"]
        self.step, self.seconds = 0, 0.0
        self._saved = 0  # optimiser steps in the checkpoint
        self._resume = resume
        self._claim = ExitStack()  # of the run folder, and its loggers
        self._loggers: list[Logger] = []
        self._begun = False
        self._micro = 0  # batches since the last step, whose gradients are summed

    @property
    def done(self) -> bool:
        """Whether it has made its steps, used up its time or converged."""
        limits = self.config.trainer
        late = limits.max_minutes is not None and self.seconds > 60 * limits.max_minutes
        ended = self.step >= limits.max_steps or late or self.task.monitor.converged
        return ended and not self._micro

    def begin(self) -> None:
        """Before its first step in a pack: claim the run folder, load what it goes on from."""
        if self._begun:  # it had to wait once more
            return
        self._claim.enter_context(claimed(self.run.path))
        if self._resume:
            self._load()
        self._resume = False
        self._loggers = pack_loggers(self.config.logging, self.run.path)
        self._claim.callback(close_loggers, self._loggers)
        self._begun = True

    def release(self) -> None:
        """Close the loggers, and leave the run folder to others."""
        self._claim.close()

    def part(self) -> Part:
        """What it brings to the next joint step; it is the same until :meth:`update`."""
        number = self.step * self.config.trainer.accumulate + self._micro
        return Part(self.module.objective, self.module.objective.draw(number), self.step)

    def update(self, gradients: Gradients) -> None:
        """Take the gradients of a micro-batch; after ``accumulate`` of them, an optimiser step."""
        rate = {f"lr-{type(self.optimizer).__name__}": self.optimizer.param_groups[0]["lr"]}
        self.module.losses.put(self.step, gradients.scalars, rate)
        for p, gradient in zip(self.parameters, gradients.of, strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient
        self._micro += 1
        if self._micro < self.config.trainer.accumulate:
            return
        self.module.objective.share_gradients(self.step)
        if self.config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step, self._micro = self.step + 1, 0

    def observe(self, precision: torch.autocast) -> None:
        """Measure and save what is due at this step.

        Raises:
            UserError: the base model looks untrained, or the loss is not finite.
        """
        self._report()
        if self._micro:
            return
        step, task = self.step, self.task
        if self.done or step % task.monitor.every == 0:
            task.monitor.measure(step, self.module, precision, self._loggers)
        if self.saves:  # done by this measurement, perhaps
            self.keeper.save(step, self.module)
            self.save()

    def _report(self, *, wait: bool = False) -> None:
        self.module.losses.report(self._loggers, self.config.trainer.log_every, wait=wait)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due at this step, once it has been measured."""
        every = self.config.trainer.checkpoint_every
        return not self._micro and (self.done or self.step > 0 and self.step % every == 0)

    @property
    def pictures_due(self) -> bool:
        """Whether pictures are to be drawn at this step, once it has been observed."""
        pictures = self.task.pictures
        if pictures is None or self._micro or not pictures.due(self.step):
            return False
        return self.done or self.step % pictures.every == 0

    def keep_pictures(self, drawn: Tensor | UserError) -> None:
        """Save the pictures (n, 3, H, W) of this step; raise what was wrong with them."""
        assert self.task.pictures is not None
        if isinstance(drawn, BrokenPictures):
            self.task.pictures.leave_out(self.step, drawn)
            return
        if isinstance(drawn, UserError):
            raise drawn
        self.task.pictures.keep(self.step, {"samples": drawn}, self._loggers)

    def save(self) -> None:
        """Write the checkpoint that ``_load`` goes on from, unless it holds this step; batches since the last
        optimiser step are not in it, and come again."""
        if self.step == self._saved:
            return
        self._report(wait=True)  # nothing that is not finite is kept
        state = self._state()
        if self.module.vectors_only:
            state = {key: state[key] for key in ("base_model", "manager")}
        path, before = packed_checkpoints(self.run.path)
        if path.is_file():
            os.replace(path, before)
        with atomic_write(path) as temporary, open(temporary, "wb") as stream:
            torch.save(state, stream)  # to a stream: a path would be stored in the file
        self._saved = self.step

    def _state(self) -> dict[str, Any]:
        return {
            "base_model": self.module.base_fingerprint,
            "manager": self.module.manager.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "monitor": self.task.monitor.state_dict(),
        }

    def moment(self) -> dict[str, Any]:
        """All that it goes on from exactly here, in the middle of an optimiser step too."""
        return {**self._state(), "micro": self._micro, "gradients": [p.grad for p in self.parameters]}

    def at_moment(self, state: dict[str, Any]) -> None:
        """Be as it was at :meth:`moment`."""
        self._adopt(state)
        self._micro = state["micro"]
        for p, gradient in zip(self.parameters, state["gradients"], strict=True):
            p.grad = None if gradient is None else gradient.to(p.device)

    def _load(self) -> None:
        """Go on from the newest checkpoint that is whole, if there is any.

        Raises:
            UserError: all are damaged, or of another base model, or it has made more steps already.
        """
        there = [path for path in packed_checkpoints(self.run.path) if path.is_file()]
        for number, path in enumerate(there):
            if is_whole(path):
                if number:
                    log.warning("%s is damaged: going on from %s", there[0], path.name)
                self._take(path)
                return
        if there:
            raise UserError(f"{there[0]} is damaged; remove it, and the word is learned anew")

    def _take(self, path: Path) -> None:
        try:
            state = read_torch(path)
            self.module.on_load_checkpoint(state)
            if self.module.vectors_only:
                self.module.manager.load_state_dict(state["manager"])
                return
            refuse_fewer_steps(self.run.path, state["step"], self.config.trainer.max_steps)
            self._adopt(state)
            self._saved = self.step
        except UserError:
            raise
        except Exception as error:  # readers raise nearly anything on broken bytes
            raise UserError(f"{path} is damaged; remove it, and the word is learned anew") from error

    def _adopt(self, state: dict[str, Any]) -> None:
        self.module.manager.load_state_dict(state["manager"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.task.monitor.load_state_dict(state["monitor"])
        self.step, self.seconds = state["step"], state["seconds"]


def joint_gradients(
    model: LatentDiffusion, learners: Sequence[Learner], precision: torch.autocast
) -> list[Gradients]:
    """For each concept, the gradients by its own next micro-batch. Nothing has changed if this fails.

    Args:
        model: the shared one; the concepts' own models are twins of it (``with_own_words``).
        precision: autocast.
    """
    with precision:
        found = losses(model, [learner.part() for learner in learners])
    # an optimiser step counts by the mean over its micro-batches
    totals = [
        loss.total / learner.config.trainer.accumulate for loss, learner in zip(found, learners, strict=True)
    ]
    parameters = [p for learner in learners for p in learner.parameters]
    gradients = iter(torch.autograd.grad(torch.stack(totals).sum(), parameters))
    return [
        Gradients(tuple(next(gradients) for _ in learner.parameters), loss.scalars)
        for loss, learner in zip(found, learners, strict=True)
    ]
