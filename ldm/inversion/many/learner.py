"""One step of several concepts at once: one text encoding, one UNet call, one backward pass.

Concepts share the frozen weights and nothing else. Each brings its own micro-batch, noise and timesteps
(functions of its seed and step), and the objective is the sum over concepts of the mean over their own
samples: the gradient of a concept's v* is then the one that it would have had alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.diffusion.guidance import join_contexts
from ldm.errors import UserError
from ldm.inversion.resume import is_whole, refuse_fewer_steps
from ldm.inversion.run import packed_checkpoints
from ldm.inversion.task import Inversion
from ldm.io.atomic import atomic_write
from ldm.io.checkpoints import read_torch
from ldm.io.claims import claimed
from ldm.sampling.sample import BrokenPictures
from ldm.training.fit import close_loggers, pack_loggers

log = logging.getLogger(__name__)


class Draw(NamedTuple):
    """A concept's micro-batch of B samples with U unique prompts, on the CPU.

    z, noise: (B, C, h, w); t: (B,); ids: (U, L); prompt: (B,) rows of ``ids``.
    """

    z: Tensor
    t: Tensor
    noise: Tensor
    ids: Tensor
    prompt: Tensor


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
        self._ids: dict[str, Tensor] = {}

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

    @property
    def scalars_due(self) -> bool:
        """Whether the next micro-batch is logged: of an optimiser step that is due, the first one."""
        due = (self.step + 1) % self.config.trainer.log_every == 0
        return due and bool(self._loggers) and not self._micro

    def log(self, scalars: Mapping[str, Tensor]) -> None:
        """Log a step's scalars, by the names that a run of its own has, and its learning rate."""
        values = {name: float(value) for name, value in scalars.items()}
        values[f"lr-{type(self.optimizer).__name__}"] = self.optimizer.param_groups[0]["lr"]
        for logger in self._loggers:
            logger.log_metrics(values, step=self.step)

    def draw(self) -> Draw:
        """The next micro-batch; it is the same until :meth:`update`."""
        number = self.step * self.config.trainer.accumulate + self._micro
        batch = self.module.batches.batch(number)
        t, noise = self.module.draw_noise(batch["z"], number)
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(batch["prompt"]))}
        rows = torch.tensor([unique[prompt] for prompt in batch["prompt"]])
        return Draw(batch["z"], t, noise, torch.cat([self._tokens(p) for p in unique]), rows)

    def _tokens(self, prompt: str) -> Tensor:
        if prompt not in self._ids:
            self._ids[prompt] = self.module.text.tokenize([prompt])
        return self._ids[prompt]

    def update(self, gradients: Sequence[Tensor]) -> None:
        """Take the gradients of a micro-batch; after ``accumulate`` of them, an optimiser step."""
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient if p.grad is None else p.grad + gradient
        self._micro += 1
        if self._micro < self.config.trainer.accumulate:
            return
        self.module.share_gradients(self.step)
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
        if self._micro:
            return
        step, task = self.step, self.task
        if self.done or step % task.monitor.every == 0:
            task.monitor.measure(step, self.module, precision, self._loggers)
        if self.saves:  # done by this measurement, perhaps
            self.keeper.save(step, self.module)
            self.save()

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
) -> list[tuple[Tensor, ...]]:
    """For each concept, the gradients of its parameters by its own next micro-batch.

    Nothing has changed if this fails. What is to be logged of it is logged.

    Args:
        model: the shared one; the concepts' own models are twins of it (``with_own_words``).
        precision: autocast.
    """
    draws = [learner.draw() for learner in learners]
    # a micro-batch counts by its mean, an optimiser step by the mean over its micro-batches
    share = [1 / learner.config.trainer.accumulate for learner in learners]
    weight = torch.cat([torch.full([len(d.z)], s / len(d.z)) for d, s in zip(draws, share, strict=True)])
    to = partial(Tensor.to, device=model.device, non_blocking=True)
    z, t, noise, ids, prompt = map(to, _collate(draws))
    with precision:
        cond = _contexts(model, learners, ids, [len(draw.ids) for draw in draws])
        per_sample = model.loss_terms(z, cond[prompt], t, noise).per_sample
    loss = (per_sample * to(weight)).sum()
    own_losses = per_sample.detach().split([len(draw.z) for draw in draws])
    scalars: list[dict[str, Tensor]] = [
        {"train/loss": own.mean()} if learner.scalars_due else {}
        for learner, own in zip(learners, own_losses, strict=True)
    ]
    for learner, part, logged in zip(learners, share, scalars, strict=True):
        if learner.config.regularization:
            pull = learner.module.pull(learner.step)
            loss = loss + part * learner.config.regularization * pull
            if logged:
                logged["train/regularization"] = pull.detach()
    found = iter(torch.autograd.grad(loss, [p for learner in learners for p in learner.parameters]))
    for learner, logged in zip(learners, scalars, strict=True):
        if logged:
            learner.log(logged)
    return [tuple(next(found) for _ in learner.parameters) for learner in learners]


def _collate(draws: Sequence[Draw]) -> Draw:
    """One draw of all, in their order."""
    z, t, noise, ids, prompt = zip(*draws, strict=True)
    above = torch.tensor([0, *map(len, ids)]).cumsum(0).tolist()
    rows = [own + n for own, n in zip(prompt, above, strict=False)]
    return Draw(torch.cat(z), torch.cat(t), torch.cat(noise), torch.cat(ids), torch.cat(rows))


def _contexts(model: LatentDiffusion, learners: Sequence[Learner], ids: Tensor, unique: list[int]) -> Tensor:
    """(U, L, D) contexts of all prompts; ids (U, L), ``unique`` of them each learner's.

    Every learner puts in its own words, whose private ids may be another's too; the encoder then runs
    once.
    """
    embeds = model.text.embed(ids)
    placed = [
        learner.module.manager(own, looked_up, learner.step)
        for learner, own, looked_up in zip(learners, ids.split(unique), embeds.split(unique), strict=True)
    ]
    ids, embeds = (join_contexts(parts) for parts in zip(*placed, strict=True))
    return model.text.contexts(embeds, ids)
