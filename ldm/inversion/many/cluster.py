"""Many concepts on many workers: tasks of some concepts each are handed out, retried and collected.

A worker is whatever a ``concurrent.futures.Executor`` runs functions on: Ray's
(``ldm.inversion.many.ray_workers``) or a thread. Workers write run folders to storage that all share, and
the state is there alone: a task that is done again keeps what is finished and goes on from the
checkpoints of what is not. One rule so serves a worker that died, a driver that was stopped, and
``--resume``.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Generic, Literal, TypeVar

from tqdm import tqdm

from ldm.backbone import loading
from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.many.jobs import Job, Result, check_together
from ldm.inversion.many.pack import learn_many

log = logging.getLogger(__name__)

J = TypeVar("J")
R = TypeVar("R")
#: tasks handed out at a time: enough for any number of workers, little memory here
IN_FLIGHT = 2048
#: failures without a single success that mean that the workers cannot work
HOPELESS = 20


@dataclass(frozen=True)
class Task(Generic[J]):
    """Jobs, concepts to learn as a rule, that one worker does in one go, and how often workers have failed at
    it."""

    jobs: tuple[J, ...]
    failures: int = 0

    def again(self, retries: int) -> list[Task[J]]:
        """What to do after a failure: the same once more, but its halves after ``retries`` of them.

        A concept that takes its worker down ends up alone and takes no other with it; nothing is left
        to do for one that fails alone.
        """
        task = replace(self, failures=self.failures + 1)
        if task.failures <= retries:
            return [task]
        if len(task.jobs) == 1:
            return []
        middle = len(task.jobs) // 2
        return [replace(task, jobs=half) for half in (task.jobs[:middle], task.jobs[middle:])]


def learn_on(
    workers: Executor,
    jobs: Sequence[Job],
    out: Path,
    *,
    task_size: int,
    pack: int | Literal["auto"] = "auto",
    retries: int = 2,
    progress: bool = True,
) -> list[Result]:
    """Learn every job's word, each in its run folder ``out/<name>``; results in the jobs' order.

    Args:
        workers: who find ``out``, the pictures and the model at the same paths.
        task_size: concepts a task. Large enough for several packs, small enough that every worker has
            some to do until the end.
        pack: as in ``learn_many``.
        retries: of a task whose worker died or raised something, before its halves are tried.

    Finished concepts are kept. One that fails is named in its result and stops no other.

    Raises:
        UserError: jobs that no pack can hold, or workers that cannot work: no model, nothing but failures.
    """
    if task_size < 1 or retries < 0:
        raise UserError(f"tasks of {task_size} concepts with {retries} retries: give at least 1, and 0")
    if not jobs:
        return []
    check_together(jobs)
    tasks = [Task(tuple(jobs[i : i + task_size])) for i in range(0, len(jobs), task_size)]
    learn = partial(learn_task, home=Path.cwd(), out=out, pack=pack)
    results, failed = dict[str, Result](), 0
    with tqdm(total=len(jobs), desc="concepts", disable=not progress) as bar:
        for task, outcome in hand_out(tasks, workers, learn, retries):
            if isinstance(outcome, BaseException):
                outcome = [_failed(job, out, outcome) for job in task.jobs]
            results |= {result.name: result for result in outcome}
            failed += sum(result.status == "failed" for result in outcome)
            bar.set_postfix(failed=failed)
            bar.update(len(task.jobs))
    return [results[job.name] for job in jobs]


def hand_out(
    tasks: Sequence[Task[J]], workers: Executor, learn: Callable[[tuple[J, ...]], list[R]], retries: int
) -> Iterator[tuple[Task[J], list[R] | BaseException]]:
    """Every task's results, as they come in, or what a task of one job failed by, again and again."""
    waiting, running = deque(tasks), dict[Future[list[R]], Task[J]]()
    failures, works = 0, False
    try:
        while waiting or running:
            while waiting and len(running) < IN_FLIGHT:
                task = waiting.popleft()
                running[workers.submit(learn, task.jobs)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, error = running.pop(future), future.exception()
                if error is None:
                    works = True
                    yield task, future.result()
                    continue
                failures += 1
                if not works and (isinstance(error, UserError) or failures >= HOPELESS):
                    raise UserError(f"the workers cannot work: {_line(error)}") from error
                log.warning("a task of %d concepts failed: %s", len(task.jobs), _line(error))
                todo = task.again(retries)
                waiting.extend(todo)
                if not todo:
                    yield task, error
    finally:
        for future in running:
            future.cancel()


def learn_task(jobs: Sequence[Job], home: Path, out: Path, pack: int | Literal["auto"]) -> list[Result]:
    """What a worker does, in the folder ``home`` of the command, where relative paths mean what they say.

    ``out`` may hold what another worker left of these jobs.
    """
    os.chdir(home)
    config = jobs[0].config
    model = _model(json.dumps(config.model), config.checkpoint, config.strict)
    return learn_many(model, jobs, out, pack=pack, resume=True, progress=False)


@lru_cache(maxsize=1)
def _model(name: str, checkpoint: str | None, strict: bool) -> LatentDiffusion:
    """A worker's model, kept from task to task; ``name``: as JSON, it may be a mapping."""
    return loading.load(json.loads(name), checkpoint, strict=strict)


def _failed(job: Job, out: Path, error: BaseException) -> Result:
    return Result(job.name, job.config.placeholder, "failed", out / job.name, error=_line(error))


def _line(error: BaseException) -> str:
    """An error in one line, with its kind and its first sentence if it is none of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text.split('. ')[0][:300]}"
