"""A concept among others: what Lightning's Trainer does for a run of its own, for a member of a pack."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.checkpoint import of_steps, write
from ldm.inversion.resume import refuse_fewer_steps, whole_checkpoint
from ldm.inversion.step import Part, losses
from ldm.inversion.task import Inversion
from ldm.io.checkpoints import read_torch
from ldm.io.claims import claimed
from ldm.sampling.sample import BrokenPictures
from ldm.training.dashboard import Dashboard
from ldm.training.fit import LAST
from ldm.training.limits import TimeLimit, due, saves, too_late
from ldm.training.loggers import pack_loggers
from ldm.training.precision import optimizer_step, precision_plugin, scaled

#: by which a checkpoint knows the callback that counts the seconds of a run of its own
TIME = TimeLimit.__qualname__


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
        self.precision = precision_plugin(self.config.trainer.compute_precision, device)
        self.step, self.seconds = 0, 0.0
        self._saved = 0  # optimiser steps in the newest whole checkpoint
        self._last: int | None = None  # those in `last.ckpt`, if it is whole
        self._callbacks: dict[str, Any] = {}  # of those that a run of its own has, their states
        self._resume = resume
        self._claim = ExitStack()  # of the run folder, and its loggers
        self._loggers: list[Logger] = []
        self._ended = "success"
        self._begun = False
        self._micro = 0  # batches since the last step, whose gradients are summed

    @property
    def done(self) -> bool:
        """Whether it has made its steps, used up its time or converged."""
        limits = self.config.trainer
        late = too_late(self.seconds, limits.max_minutes)
        return (self.step >= limits.max_steps or late or self.task.converged) and not self._micro

    def begin(self) -> None:
        """Before its first step in a pack: claim the run folder, load what it goes on from."""
        if self._begun:  # it had to wait once more
            return
        self._claim.enter_context(claimed(self.run.path))
        if self._resume:
            self._load()
        self._resume = False
        self._loggers = pack_loggers(self.config.logging, self.run.path)
        dashboard = Dashboard(self._loggers)
        self._claim.callback(lambda: dashboard.close(self._ended))
        dashboard.begin(self.task.about)
        self._begun = True

    @property
    def loggers(self) -> Sequence[Logger]:
        """Open from :meth:`begin` to :meth:`release`."""
        return self._loggers

    def release(self, ended: Literal["success", "failed"] = "success") -> None:
        """Close the loggers, with how it ended, and leave the run folder to others."""
        self._ended = ended
        self._claim.close()

    def part(self) -> Part:
        """What it brings to the next joint step; it is the same until :meth:`update`."""
        number = self.step * self.config.trainer.accumulate + self._micro
        draw = self.precision.convert_input(self.module.objective.draw(number))
        return Part(self.module.objective, draw, self.step)

    def update(self, gradients: Gradients) -> None:
        """Take the gradients of a micro-batch; after ``accumulate`` of them, an optimiser step."""
        rate = {f"lr-{type(self.optimizer).__name__}": self.optimizer.param_groups[0]["lr"]}
        self.module.losses.put(self.step, gradients.scalars, rate)
        for p, gradient in zip(self.parameters, gradients.of, strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient
        self._micro += 1
        if self._micro < self.config.trainer.accumulate:
            return
        share = partial(self.module.manager.prepare_gradients, self.step)
        optimizer_step(self.optimizer, self.precision, self.config.optim.clip_norm, share)
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step, self._micro = self.step + 1, 0

    def observe(self) -> None:
        """Measure and save what is due at this step.

        Raises:
            UserError: the base model looks untrained, or the loss is not finite.
        """
        self._report()
        if self._micro:
            return
        self._measure_and_save()
        scores = self.task.scores
        if scores is not None and scores.due(self.step, ends=self.done):
            scores.show(self.step, self.module, self._loggers)
            self._measure_and_save()  # done by these scores, perhaps

    def _measure_and_save(self) -> None:
        """Do what is due at this step, and has not been done yet."""
        step, monitor = self.step, self.task.monitor
        if due(step, monitor.every, ends=self.done):
            monitor.measure(step, self.module, self.precision.forward_context(), self._loggers)
        if self.saves:  # done by this measurement, perhaps
            self.keeper.save(step, self.module)
            self.save()

    def _report(self, *, wait: bool = False) -> None:
        self.module.losses.report(self._loggers, self.config.trainer.log_every, wait=wait)

    @property
    def saves(self) -> bool:
        """Whether a checkpoint is due at this step, once it has been measured."""
        return not self._micro and saves(self.step, self.keeper.every, ends=self.done)

    @property
    def pictures_due(self) -> bool:
        """Whether pictures are to be drawn at this step, once it has been observed."""
        pictures = self.task.pictures
        return pictures is not None and not self._micro and pictures.due(self.step, ends=self.done)

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
        """Write the checkpoint that it goes on from, alone as well, unless it holds this step; batches since
        the last optimiser step are not in it, and come again."""
        if self.step == self._saved:
            return
        self._report(wait=True)  # nothing that is not finite is kept
        write(self.run.path, self._state(), self._last)
        self._saved = self._last = self.step

    def _state(self) -> dict[str, Any]:
        monitor = self.task.monitor
        callbacks = {monitor.state_key: monitor.state_dict(), TIME: {"seconds": self.seconds}}
        callbacks = {**self._callbacks, **callbacks}
        counts = self.step, self.config.trainer.accumulate
        state = of_steps(*counts, self.optimizer, self.scheduler, self.precision, callbacks)
        state["state_dict"] = self.module.state_dict()
        self.module.complete(state)
        return state

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
        """Go on from the newest checkpoint that is whole, if there is any, whoever wrote it.

        Raises:
            UserError: all are damaged, or of another base model, or it has made more steps already.
        """
        found = whole_checkpoint(self.run.path)
        if found is None:
            return
        if self.module.vectors_only:
            self.module.take_vectors(found.path)
            return
        refuse_fewer_steps(self.run.path, found.step, self.config.trainer.max_steps)
        try:
            state = read_torch(found.path)
            self.module.on_load_checkpoint(state)
            self._adopt(state)
        except UserError:
            raise
        except Exception as error:  # readers raise nearly anything on broken bytes
            raise UserError(f"{found.path} is damaged; remove it, and the word is learned anew") from error
        self._saved = self.step
        self._last = self.step if found.path.name == LAST.name else None

    def _adopt(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["state_dict"], strict=False)
        self.optimizer.load_state_dict(state["optimizer_states"][0])
        self.scheduler.load_state_dict(state["lr_schedulers"][0])
        scale, monitor = type(self.precision).__qualname__, self.task.monitor
        if scale in state:
            self.precision.load_state_dict(state[scale])
        self._callbacks = state["callbacks"]
        monitor.load_state_dict(self._callbacks[monitor.state_key])
        self.step, self.seconds = state["global_step"], self._callbacks[TIME]["seconds"]


def joint_gradients(model: LatentDiffusion, learners: Sequence[Learner]) -> list[Gradients]:
    """For each concept, the gradients by its own next micro-batch. Nothing has changed if this fails.

    Args:
        model: the shared one; the concepts' own models are twins of it (``with_own_words``).
        learners: all in the same precision.
    """
    parts = [learner.part() for learner in learners]
    with learners[0].precision.forward_context():
        found = losses(model, parts)
    # an optimiser step counts by the mean over its micro-batches
    totals = [
        scaled(loss.total / learner.config.trainer.accumulate, learner.precision)
        for loss, learner in zip(found, learners, strict=True)
    ]
    parameters = [p for learner in learners for p in learner.parameters]
    gradients = iter(torch.autograd.grad(torch.stack(totals).sum(), parameters))
    return [
        Gradients(tuple(next(gradients) for _ in learner.parameters), loss.scalars)
        for loss, learner in zip(found, learners, strict=True)
    ]
