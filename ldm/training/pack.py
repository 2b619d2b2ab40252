"""Many concepts in one pass: N words learned in one batch, each as in a run of its own.

A concept that has made its steps or converged leaves the pack, and the next takes its place. What a
concept learns does not depend on what is learned beside it: it has its own vocabulary, generators,
optimiser, schedule, stopping rule and run folder, and shares only the frozen model.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.config import load_yaml, resolve
from ldm.errors import UserError
from ldm.io.embeddings import load_embeddings, save_embeddings
from ldm.io.runs import RunFolder, create_run, now, write_json
from ldm.model import LatentDiffusion
from ldm.training.config import InversionConfig, check
from ldm.training.fit import attention_kernel
from ldm.training.frozen import trained_form
from ldm.training.learner import CHECKPOINT, Learner, joint_gradients
from ldm.training.memory import USABLE, free_bytes, in_one_line, out_of_memory, step_bytes, too_large
from ldm.training.run import Inversion, prepare, read_pictures, write_config

log = logging.getLogger(__name__)

#: keys that all concepts of a pack have in common
SHARED = (
    "model",
    "checkpoint",
    "checkpointing",
    "trainer.precision",
    "trainer.accelerator",
    "trainer.attention",
    "trainer.threads",
)
PRECISIONS = ("32-true", "bf16-mixed")
#: samples a call, beyond which a CPU gains nothing (`benchmarks/pack.py`)
CPU_SAMPLES = 128
SUMMARY = "concepts.json"


@dataclass(frozen=True)
class Job:
    """A concept to learn: the name of its run folder, and its settings."""

    name: str
    config: InversionConfig


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        name, word: of the run folder, and the placeholder.
        status: learned; kept, if it had been finished before; or failed,
        error: for this reason.
        steps: optimiser steps done.
        loss: on the concept's fixed batch at the end.
        seconds: its share of the time that its packs took.
        path: of the run folder.
    """

    name: str
    word: str
    status: Literal["learned", "kept", "failed"]
    path: Path
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    error: str | None = None


def learn_many(
    model: LatentDiffusion,
    jobs: Sequence[Job],
    out: Path,
    *,
    pack: int | Literal["auto"] = "auto",
    resume: bool = False,
    progress: bool = True,
) -> list[Result]:
    """Learn every job's word, each in its run folder ``out/<name>``; results in the jobs' order.

    Args:
        model: the model that all jobs are for; it learns no word itself, but is left on the device.
        pack: concepts a pass; "auto" takes as many as there is memory for. Out of memory, a pack is
            made smaller.
        resume: skip what is finished, go on from the checkpoints of what is not.

    A job that fails is named in its result and stops no other.

    Raises:
        UserError: jobs that no pack can hold: two of one name or word, or settings that differ in what
            a pack shares (``SHARED``).
    """
    if not jobs:
        return []
    check_together(jobs)
    if pack != "auto" and pack < 1:
        raise UserError(f"a pack of {pack} concepts learns nothing: give 1 or more, or auto")
    trainer = jobs[0].config.trainer
    device = _device(trainer.accelerator)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=trainer.precision != "32-true")
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    model.fingerprint()  # once, for all twins
    model.to(device)
    results: dict[str, Result] = {}
    waiting: deque[Learner] = deque()  # the only reference: what has left takes no memory
    for job in jobs:  # all pictures are encoded first, in full precision
        run = RunFolder(Path(out) / job.name)
        try:
            if resume and _finished(job, run):
                results[job.name] = _kept(job, run)
            else:
                waiting.append(Learner(_prepare(job, model, run, resume), device, resume=resume))
        except UserError as error:
            results[job.name] = _failed(job, run, error)
    named = {job.name: job for job in jobs}
    form = trained_form(model, trainer.precision, checkpointing=jobs[0].config.checkpointing)
    with attention_kernel(trainer.attention), form:
        with _bar(waiting, progress) as bar:
            for learner, error in Pack(model, waiting, pack, precision).train(bar):
                job = named[learner.run.path.name]
                result = _failed(job, learner.run, error) if error else _finish(job, learner)
                results[job.name] = result
                bar.set_postfix_str(f"{len(results)} of {len(jobs)} concepts done")
    return [results[job.name] for job in jobs]


def check_together(jobs: Sequence[Job]) -> None:
    """Refuse jobs that no pack can hold, by a :class:`UserError` that names one of them."""
    for what, given in (("name", [j.name for j in jobs]), ("word", [j.config.placeholder for j in jobs])):
        twice = [value for value, times in Counter(given).items() if times > 1]
        if twice:
            raise UserError(f"two concepts have the {what} {twice[0]!r}: every one needs its own")
    first = jobs[0]
    for job in jobs:
        for key in SHARED:
            own, common = attrgetter(key)(job.config), attrgetter(key)(first.config)
            if own != common:
                raise UserError(f"{job.name}: a pack has one {key}, but it is {own!r} here and {common!r} "
                                f"for {first.name}; learn them by commands of their own")
        trainer = job.config.trainer
        if job.config.model_lr:
            raise UserError(f"{job.name}: model_lr trains the model that a pack shares; set it to 0, or "
                            "learn this concept by a command of its own")
        if job.config.compiled or job.config.cuda_graphs:
            raise UserError(f"{job.name}: a pack changes its size and would be compiled anew each time; set "
                            "compiled and cuda_graphs to false, or learn it by a command of its own")
        if trainer.devices != 1 or trainer.precision not in PRECISIONS:
            raise UserError(f"{job.name}: a pack trains on one device, in {' or '.join(PRECISIONS)}; not on "
                            f"{trainer.devices} in {trainer.precision}")


def write_summary(results: Sequence[Result], out: Path) -> None:
    """Write ``concepts.json``, and ``embeddings.safetensors`` with every word that was learned."""
    rows = [{**asdict(result), "path": os.path.relpath(result.path, out)} for result in results]
    write_json(out / SUMMARY, {"format": 1, "written": now(), "concepts": rows})
    words = [
        word
        for result in results
        if result.status != "failed"
        for word in load_embeddings(result.path / "embeddings.safetensors")
    ]
    if words:
        save_embeddings(words, out / "embeddings.safetensors")


# ------------------------------------------------------------------ one job, before and after


def _finished(job: Job, run: RunFolder) -> bool:
    """Whether the job's word has been learned; a run of other settings is refused."""
    finished = run.manifest_path.is_file() and "finished" in run.read_manifest()
    if finished or run.path.joinpath(*CHECKPOINT).is_file():
        made_with = resolve(InversionConfig, load_yaml([run.path / "config.yaml"]))
        if made_with != job.config:
            raise UserError(f"{run.path} was made with other settings; remove it to learn the word anew")
    return finished


def _prepare(job: Job, model: LatentDiffusion, run: RunFolder, resume: bool) -> Inversion:
    concept, captions = read_pictures(job.config, model.image_size)
    check(job.config)
    if not (resume and run.path.is_dir()):
        create_run(run.path)
    write_config(run, job.config)
    with in_one_line(job.config.batch_size):
        return prepare(model.with_own_words(), concept, job.config, captions=captions, run=run)


def _finish(job: Job, learner: Learner) -> Result:
    try:
        with in_one_line(job.config.batch_size):
            learner.task.finish(learner.step, learner.seconds)
    except UserError as error:
        return _failed(job, learner.run, error)
    return _kept(job, learner.run, "learned")


def _kept(job: Job, run: RunFolder, status: Literal["learned", "kept"] = "kept") -> Result:
    manifest = run.read_manifest()
    figures = {key: manifest[key] for key in ("steps", "loss", "seconds") if key in manifest}
    return Result(job.name, job.config.placeholder, status, run.path, **figures)


def _failed(job: Job, run: RunFolder, error: UserError) -> Result:
    log.warning("%s failed: %s", job.name, error)
    return Result(job.name, job.config.placeholder, "failed", run.path, error=str(error))


def _device(accelerator: str) -> torch.device:
    """Of Lightning's name for it; a pack uses a CPU or one GPU."""
    found = torch.cuda.is_available()
    if accelerator == "cpu" or (accelerator == "auto" and not found):
        return torch.device("cpu")
    if accelerator not in ("auto", "gpu", "cuda") or not found:
        raise UserError(f"no {accelerator} that torch can use was found; give trainer.accelerator=cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _bar(learners: Iterable[Learner], progress: bool) -> tqdm:
    steps = sum(learner.config.trainer.max_steps for learner in learners)
    return tqdm(total=steps, desc="training", unit="step", disable=not progress)


# ------------------------------------------------------------------ the pack


class Pack:
    """Trains concepts side by side; when one leaves, the next one joins.

    Args:
        model: the shared one, on its device.
        waiting: the concepts, in the order of joining; they are taken from here.
        size: how many at once, or "auto".
        precision: autocast.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        waiting: deque[Learner],
        size: int | Literal["auto"],
        precision: torch.autocast,
    ) -> None:
        self.model, self.precision = model, precision
        self.waiting, self.members = waiting, list[Learner]()
        self.size = self._fitting() if size == "auto" else size

    def train(self, bar: tqdm) -> Iterator[tuple[Learner, UserError | None]]:
        """Every concept as it leaves: at its end, or with what made it fail."""
        while self.waiting or self.members:
            while self.waiting and len(self.members) < self.size:
                learner = self.waiting.popleft()
                before = learner.step
                error = self._error_of(learner, learner.begin)
                bar.update(learner.step - before)
                if error is None and not learner.done:
                    self.members.append(learner)
                else:
                    yield self._leave(learner, bar), error
            if self.members:
                for learner, error in self._step(bar):
                    self.members.remove(learner)
                    yield self._leave(learner, bar), error

    def _step(self, bar: tqdm) -> list[tuple[Learner, UserError | None]]:
        """One micro-batch of every member; returns those who leave."""
        started = time.perf_counter()
        found = self._gradients()
        if found is None:
            return self._shrink()
        leaving: list[tuple[Learner, UserError | None]] = []
        for learner, gradients in zip(self.members, found, strict=True):
            before = learner.step
            learner.update(gradients)
            error = self._error_of(learner, learner.observe)
            bar.update(learner.step - before)
            if error or learner.done:
                leaving.append((learner, error))
        share = (time.perf_counter() - started) / len(self.members)
        for learner in self.members:
            learner.seconds += share
        return leaving

    def _gradients(self) -> list[tuple[Tensor, ...]] | None:
        """None if there was not enough memory."""
        try:
            return joint_gradients(self.model, self.members, self.precision)
        except Exception as error:
            if not out_of_memory(error):
                raise
        # not in the handler: its traceback keeps the activations
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _shrink(self) -> list[tuple[Learner, UserError | None]]:
        """Half of the members wait for their turn; a concept that does not fit alone has failed."""
        n = len(self.members)
        if n == 1:
            return [(self.members[0], too_large(self.members[0].config.batch_size))]
        self.size = n // 2
        log.warning("out of memory with %d concepts in a pack: going on with %d", n, self.size)
        self.waiting.extendleft(reversed(self.members[self.size :]))
        del self.members[self.size :]
        return []

    def _error_of(self, learner: Learner, action: Callable[[torch.autocast], None]) -> UserError | None:
        """What is wrong with one concept, which must not stop the others."""
        try:
            with in_one_line(learner.config.batch_size):
                action(self.precision)
        except UserError as error:
            return error
        return None

    def _leave(self, learner: Learner, bar: tqdm) -> Learner:
        bar.total -= max(0, learner.config.trainer.max_steps - learner.step)
        return learner

    def _fitting(self) -> int:
        """How many concepts there is memory for, by a step of the first one that is thrown away."""
        if not self.waiting:
            return 1
        probe, device = self.waiting[0], self.model.device
        try:
            taken = step_bytes(
                lambda: joint_gradients(self.model, [probe], self.precision),
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
