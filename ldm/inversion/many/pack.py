"""Many concepts in one pass: N words learned in one batch, each as in a run of its own.

A concept that has made its steps or converged leaves the pack, and the next takes its place. What a
concept learns does not depend on what is learned beside it: it has its own vocabulary, generators,
optimiser, schedule, stopping rule and run folder, and shares only the frozen model.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from ldm import interrupt
from ldm.backbone.forms import trained_form
from ldm.backbone.model import LatentDiffusion
from ldm.device import device_of, out_of_memory
from ldm.errors import UserError
from ldm.inversion.many.folders import failed, finish, is_finished, kept, prepared
from ldm.inversion.many.jobs import Job, Result, check_together
from ldm.inversion.many.learner import Gradients, Learner, joint_gradients
from ldm.inversion.report import on_the_way
from ldm.inversion.run import as_trained
from ldm.inversion.snapshot import Snapshot, SnapshotFile
from ldm.io.runs import RunFolder
from ldm.sampling.together import draw_together
from ldm.text.english import counted
from ldm.training.fit import attention_kernel
from ldm.training.loggers import check_loggers
from ldm.training.memory import USABLE, free_bytes, freed_memory_kept, in_one_line, step_bytes, too_large
from ldm.training.quiet import quiet

log = logging.getLogger(__name__)

#: samples a call, beyond which a CPU gains nothing: of 8 a concept, on one thread, 2, 4, 8 and 16 concepts
#: made 1.10, 1.16, 1.21 and 1.22 times the steps a second; on two, 16 beat 32 (`benchmarks/pack.py`)
CPU_SAMPLES = 128


def learn_many(
    model: LatentDiffusion,
    jobs: Sequence[Job],
    out: Path,
    *,
    pack: int | Literal["auto"] = "auto",
    resume: bool = False,
    progress: bool = True,
    same_words: bool = False,
) -> list[Result]:
    """Learn every job's word, each in its run folder ``out/<name>``; results in the jobs' order.

    Args:
        model: the model that all jobs are for; it learns no word itself, but is left on the device.
        pack: concepts a pass; "auto" takes as many as there is memory for. Out of memory, a pack is
            made smaller.
        resume: skip what is finished, go on from the checkpoints of what is not.
        same_words: see :func:`check_together`.

    A job that fails is named in its result and stops no other.

    Raises:
        Interrupted: a signal ended it; every concept's checkpoint is what it had learned by then.
        UserError: jobs that no pack can hold: two of one name or word, or settings that differ in what
            a pack shares (``jobs.SHARED``).
    """
    if not jobs:
        return []
    check_together(jobs, same_words=same_words)
    if pack != "auto" and pack < 1:
        raise UserError(f"a pack of {pack} concepts learns nothing: give 1 or more, or auto")
    trainer = jobs[0].config.trainer
    trainer.check_machine()
    for job in jobs:
        check_loggers(job.config.logging)
    device = device_of(trainer.accelerator)
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    if jobs[0].config.clip_skip is not None:
        model.text.use_clip_skip(jobs[0].config.clip_skip)
    model.fingerprint()  # once, for all twins
    model.to(device)
    results: dict[str, Result] = {}
    waiting: deque[Learner] = deque()  # the only reference: what has left takes no memory
    for job in jobs:  # all pictures are encoded first, in full precision
        run = RunFolder(Path(out) / job.name)
        try:
            job = replace(job, config=as_trained(job.config, run.path if resume else None))
            if resume and is_finished(job, run):
                results[job.name] = kept(job, run)
            else:
                waiting.append(Learner(prepared(job, model, run, resume), device, resume=resume))
        except UserError as error:
            results[job.name] = failed(job, run, error)
    named = {job.name: job for job in jobs}
    whole = len(jobs) > 1 and not any(learner.module.vectors_only for learner in waiting)
    snapshots = SnapshotFile(Path(out), [job.name for job in jobs]) if whole else None
    members = Pack(model, waiting, pack, snapshots)
    with ExitStack() as claims, _bar(waiting, progress) as bar, freed_memory_kept(), quiet():
        for learner in waiting:
            claims.callback(learner.release)
        claims.enter_context(members.saved_at_a_signal())  # first of all
        left = members.restore(bar) if resume else []
        while True:
            # as in a run of its own, the last pictures are drawn by the model as it was loaded
            for result in finish([(named[learner.run.path.name], learner, e) for learner, e in left]):
                results[result.name] = result
            bar.set_postfix_str(f"{len(results)} of {counted(len(jobs), 'concept')} done")
            if not members.busy:
                break
            form = trained_form(
                model,
                trainer.compute_precision,
                checkpointing=jobs[0].config.compute.checkpointing,
            )
            with attention_kernel(trainer.attention), form:
                left = members.train(bar)
    if snapshots is not None:
        snapshots.remove()
    return [results[job.name] for job in jobs]


def _bar(learners: Iterable[Learner], progress: bool) -> tqdm:
    steps = sum(learner.config.trainer.max_steps for learner in learners)
    return tqdm(total=steps, desc="training", unit="step", disable=not progress)


# ------------------------------------------------------------------ the pack


Left = tuple[Learner, UserError | None]
"""Who leaves a pack, and the error that made it fail."""


class Pack:
    """Trains concepts side by side; when one leaves, the next one joins.

    Args:
        model: the shared one, on its device.
        waiting: the concepts, in the order of joining; they are taken from here.
        size: how many at once, or "auto".
        snapshots: where it is kept who stands where.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        waiting: deque[Learner],
        size: int | Literal["auto"],
        snapshots: SnapshotFile | None = None,
    ) -> None:
        self.model, self.snapshots = model, snapshots
        self.waiting, self.members, self.size = waiting, list[Learner](), size

    @property
    def busy(self) -> bool:
        """Whether anyone is learning or waiting."""
        return bool(self.waiting or self.members)

    def train(self, bar: tqdm) -> list[Left]:
        """Until some leave: at their end, or with what made them fail.

        Raises:
            Interrupted: a signal came, after the step that it came in.
        """
        left: list[Left] = []
        with interrupt.saved_first():
            while self.busy and not left and interrupt.noted() is None:
                left = self._join(bar)
                if self.members:
                    left += self._step(bar)
        for learner, _ in left:
            bar.total -= max(0, learner.config.trainer.max_steps - learner.step)
        return left

    @contextmanager
    def saved_at_a_signal(self) -> Iterator[None]:
        """Where a signal ends this block, every concept's checkpoint holds what it has learned."""
        try:
            yield
        except interrupt.Interrupted as stopped:
            if stopped.impatient:  # somewhere in a step
                raise
            with interrupt.saved_first():
                for learner in (*self.members, *self.waiting):
                    error = self._error_of(learner, learner.save)
                    if error:
                        log.warning("%s: %s", learner.run.path.name, error)
                self._keep({})
            raise

    def restore(self, bar: tqdm) -> list[Left]:
        """Go on from the snapshot of a pack that was killed; returns those who were done by then.

        Without one, or with one that every member's own checkpoint is ahead of, nothing is changed.
        """
        found = self.snapshots.read() if self.snapshots is not None else None
        if found is None or self.size not in ("auto", found.size):
            return []
        by_name = {learner.run.path.name: learner for learner in self.waiting}
        names = [name for name in found.members if name in by_name]  # the others have been finished since
        errors = {name: self._error_of(by_name[name], by_name[name].begin) for name in names}
        own = [by_name[name].step for name in names]
        if (
            any(errors.values())
            or own
            and all(step > found.states[name]["global_step"] for name, step in zip(names, own, strict=True))
        ):
            return []
        for name in names:
            by_name[name].at_moment(found.states[name])
            bar.update(by_name[name].step)
        order = [name for name in found.waiting if name in by_name]
        order += [name for name in by_name if name not in {*names, *order}]
        self.waiting.clear()
        self.waiting.extend(by_name[name] for name in order)
        self.size = found.size
        self.members = [by_name[name] for name in names if not by_name[name].done]
        return [(by_name[name], None) for name in names if by_name[name].done]

    def _keep(self, errors: Mapping[Learner, UserError | None]) -> None:
        """Write the snapshot of this moment, without those who failed."""
        if self.snapshots is None or self.size == "auto":
            return
        staying = [learner for learner in self.members if not errors.get(learner)]
        self.snapshots.write(
            Snapshot(
                self.size,
                [learner.run.path.name for learner in staying],
                [learner.run.path.name for learner in self.waiting],
                {learner.run.path.name: learner.moment() for learner in staying},
            )
        )

    def _join(self, bar: tqdm) -> list[Left]:
        """Those who wait take the free places; returns those who have nothing to do."""
        if self.size == "auto":
            self.size = self._fitting()
        left: list[Left] = []
        joining: list[Learner] = []
        for _ in range(min(len(self.waiting), self.size - len(self.members))):
            learner = self.waiting.popleft()
            before = learner.step
            error = self._error_of(learner, learner.begin)
            bar.update(learner.step - before)
            if error:
                left.append((learner, error))
            else:
                joining.append(learner)
        self.members += joining
        left += self._look(joining)
        if joining:
            self._keep(dict(left))
        return left

    def _step(self, bar: tqdm) -> list[Left]:
        """One micro-batch of every member; returns those who leave."""
        started = time.perf_counter()
        found = self._gradients()
        if found is None:
            return self._shrink()
        took_part = list(self.members)
        for learner, gradients in zip(took_part, found, strict=True):
            before = learner.step
            learner.update(gradients)
            bar.update(learner.step - before)
        left = self._look(took_part)
        share = (time.perf_counter() - started) / len(took_part)
        for learner in took_part:
            learner.seconds += share
        return left

    def _look(self, learners: Sequence[Learner]) -> list[Left]:
        """Measure, save and draw what is due for each; returns those who leave, members no more."""
        errors = {one: self._error_of(one, one.observe) for one in learners}
        due = [one for one in learners if not errors[one] and one.pictures_due]
        with interrupt.skippable():  # a concept that goes on draws them
            drawn = draw_together(on_the_way(one.task.module.model, one.config) for one in due)
            for one, pictures in zip(due, drawn, strict=True):
                errors[one] = self._error_of(one, partial(one.keep_pictures, pictures))
        left = [(one, error) for one, error in errors.items() if error or one.done]
        if left or any(one.saves for one in learners):
            self._keep(errors)
        for one, _ in left:
            self.members.remove(one)
        return left

    def _gradients(self) -> list[Gradients] | None:
        """None if there was not enough memory."""
        try:
            return joint_gradients(self.model, self.members)
        except Exception as error:
            if not out_of_memory(error):
                raise
        # not in the handler: its traceback keeps the activations
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _shrink(self) -> list[Left]:
        """Half of the members wait for their turn; a concept that does not fit alone has failed."""
        n = len(self.members)
        if n == 1:
            alone = self.members.pop()
            return [(alone, too_large(alone.config.batch_size))]
        self.size = n // 2
        log.warning("out of memory with %d concepts in a pack: going on with %d", n, self.size)
        self.waiting.extendleft(reversed(self.members[self.size :]))
        del self.members[self.size :]
        return []

    def _error_of(self, learner: Learner, action: Callable[[], None]) -> UserError | None:
        """What is wrong with one concept, which must not stop the others."""
        try:
            with in_one_line(learner.config.batch_size):
                action()
        except UserError as error:
            return error
        return None

    def _fitting(self) -> int:
        """How many concepts there is memory for, by a step of the first one that is thrown away."""
        if not self.waiting:
            return 1
        probe, device = self.waiting[0], self.model.device
        try:
            taken = step_bytes(
                lambda: joint_gradients(self.model, [probe]),
                device,
                self.model.parameters(),
            )
        except Exception as error:
            if not out_of_memory(error):
                raise
            return 1  # it is named when its turn comes
        largest = max(learner.config.batch_size for learner in self.waiting)
        fitting = int(USABLE * free_bytes(device) * probe.config.batch_size / (largest * max(1, taken)))
        if device.type == "cpu":
            fitting = min(fitting, CPU_SAMPLES // largest)
        size = max(1, min(fitting, len(self.waiting)))
        log.info("%.0f MB a concept: packs of %d", taken / 1e6, size)
        return size
