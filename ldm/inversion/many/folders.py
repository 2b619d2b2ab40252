"""One job of a pack, before its first step and after its last: its run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig, check
from ldm.inversion.many.jobs import Job, Result
from ldm.inversion.many.learner import Learner
from ldm.inversion.nearest_init import with_chosen_init
from ldm.inversion.report import at_the_end
from ldm.inversion.resume import OF_INVERSIONS, kept_config, refuse_changes, refuse_other_inputs
from ldm.inversion.task import Inversion, prepare, read_pictures, write_config
from ldm.io.claims import claimed
from ldm.io.embeddings import Embedding
from ldm.io.runs import RunFolder, create_run
from ldm.sampling.together import draw_together
from ldm.training.memory import in_one_line

log = logging.getLogger(__name__)


def is_finished(job: Job, run: RunFolder) -> bool:
    """Whether the job's word has been learned, with no more steps wanted since; refuses other settings."""
    refuse_changes(run.path, job.config, OF_INVERSIONS)
    kept = kept_config(run.path, InversionConfig)
    if kept is None or not run.manifest_path.is_file() or "finished" not in run.read_manifest():
        return False
    return job.config.trainer.max_steps <= kept.trainer.max_steps


def prepared(job: Job, model: LatentDiffusion, run: RunFolder, resume: bool) -> Inversion:
    """The job, ready to train: its run folder made, its pictures encoded, its word in a twin of ``model``."""
    check(job.config)
    concept, captions = read_pictures(job.config, model.image_size)
    config = with_chosen_init(job.config, model, concept)
    with claimed(run.path, half=lambda _: True, deep=True):
        create_run(run.path, resume=resume)
        refuse_other_inputs(run, model, concept)
        write_config(run, config)
        with in_one_line(config.batch_size):
            return prepare(model.with_own_words(), concept, config, captions=captions, run=run)


def finish(left: Sequence[tuple[Job, Learner, UserError | None]]) -> Iterator[Result]:
    """What became of those who leave; the last pictures of all are drawn together."""
    done: list[tuple[Job, Learner, list[Embedding]]] = []
    for job, learner, error in left:
        try:
            if error:
                raise error
            with in_one_line(job.config.batch_size):
                done.append((job, learner, learner.task.learned(learner.step)))
        except UserError as error:
            learner.release("failed")
            yield failed(job, learner.run, error)
    drawn = draw_together(at_the_end(learner.task.module.model, learner.config) for _, learner, _ in done)
    for (job, learner, words), pictures in zip(done, drawn, strict=True):
        try:
            if isinstance(pictures, UserError):
                raise pictures
            learner.task.report(words, learner.seconds, pictures, learner.loggers)
            yield kept(job, learner.run, "learned")
        except UserError as error:
            yield failed(job, learner.run, error)
        finally:
            learner.release()


def kept(job: Job, run: RunFolder, status: Literal["learned", "kept"] = "kept") -> Result:
    manifest = run.read_manifest()
    figures = {key: manifest[key] for key in ("steps", "loss", "seconds") if key in manifest}
    return Result(job.name, job.config.placeholder, status, run.path, **figures)


def failed(job: Job, run: RunFolder, error: UserError) -> Result:
    log.warning("%s failed: %s", job.name, error)
    return Result(job.name, job.config.placeholder, "failed", run.path, error=str(error))
