"""Run an experiment: every cell that is not finished, in groups, on whoever works."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ldm.errors import UserError
from ldm.evaluation.scorers import Scorer
from ldm.experiments.cells import groups
from ldm.experiments.plan import Cell, Plan
from ldm.experiments.scores import MORE, Scoring, more_scorers
from ldm.experiments.work import Outcome, Todo, read_record, work
from ldm.experiments.workers import Here
from ldm.inversion.evaluated import log_scores
from ldm.inversion.many.cluster import Task, hand_out
from ldm.io.atomic import write_json
from ldm.io.runs import CONFIG_NAME, RunFolder

log = logging.getLogger(__name__)

State = Literal["finished", "begun", "waiting", "failed"]


@dataclass(frozen=True)
class Standing:
    """Where a cell stands; ``error``: the line of one that failed."""

    cell: Cell
    state: State
    error: str = ""


def standing(plan: Plan, cell: Cell) -> Standing:
    """Where a cell stands, as its files tell: finished is what has been drawn."""
    record = read_record(plan.out, cell)
    if record is not None and "error" in record:
        return Standing(cell, "failed", str(record["error"]))
    if record is not None and plan.album(cell).complete:
        return Standing(cell, "finished")
    begun = any((run / CONFIG_NAME).is_file() for run in plan.runs(cell))
    return Standing(cell, "begun" if begun else "waiting")


def chosen(plan: Plan, only: Sequence[str]) -> list[Cell]:
    """The cells whose ``concept/setup/seed`` one of the patterns fits; all, if there are none.

    Raises:
        UserError: a pattern fits no cell.
    """
    for pattern in only:
        if not any(fnmatchcase(cell.title, pattern) for cell in plan.cells):
            raise UserError(f"--only {pattern!r} fits no cell; cells are called like {plan.cells[0].title}")
    return [
        cell for cell in plan.cells if not only or any(fnmatchcase(cell.title, pattern) for pattern in only)
    ]


def run(
    plan: Plan,
    scorers: Sequence[Scorer],
    *,
    only: Sequence[str] = (),
    workers: Callable[[], AbstractContextManager[Executor]] | None = None,
    retries: int = 1,
    progress: bool = True,
) -> list[Standing]:
    """Work on all cells that are not finished, score what is drawn; returns where the chosen cells stand.

    Args:
        plan: made from a YAML file.
        scorers: those of the plan.
        only: patterns of ``concept/setup/seed``.
        workers: makes the executor that works; this process if not given.
        retries: of a group whose worker died, before its halves are tried.
        progress: show bars.

    Raises:
        UserError: nothing can be worked on, because there is no such model or device.
    """
    cells = chosen(plan, only)
    judges = [Scoring(plan, scorer) for scorer in scorers]
    if plan.config.score.backgrounds:
        judges.append(Scoring(plan, None))
    todo = []
    for group in groups(plan, cells):
        states = Counter(standing(plan, cell).state for cell in group)
        if states["finished"] < len(group):
            todo.append(tuple(_todo(plan, cell) for cell in group))
    with tqdm(total=len(cells), desc="cells", unit="cell", disable=not progress) as bar:
        waiting = {one.cell.name for group in todo for one in group}
        for cell in cells:
            if cell.name not in waiting:
                _score(plan, cell, judges)
                bar.update()
        for outcome in _outcomes(todo, workers, retries, progress):
            if outcome.error is None:
                _score(plan, outcome.cell, judges)
            elif workers is not None:  # else it has been said
                log.warning("%s failed: %s", outcome.cell.title, outcome.error)
            bar.update()
    return [standing(plan, cell) for cell in cells]


def _todo(plan: Plan, cell: Cell) -> Todo:
    members = tuple(plan.members(cell))
    return Todo(cell, plan.inversions[cell.name], plan.album(cell), plan.out, plan.drawn(cell), members)


def _outcomes(
    todo: Sequence[tuple[Todo, ...]],
    workers: Callable[[], AbstractContextManager[Executor]] | None,
    retries: int,
    progress: bool,
) -> Iterator[Outcome]:
    if workers is None:
        for group in todo:
            yield from _collected(hand_out([Task(group)], Here(), partial(work, progress=progress), 0))
        return
    with ExitStack() as stack:
        executor = stack.enter_context(workers())
        at_home = partial(work, home=Path.cwd())
        first = [Task(group) for group in todo if any(one.learns for one in group)]
        after = [Task(group) for group in todo if not any(one.learns for one in group)]
        for tasks in (first, after):  # concepts together are drawn with words that others learn
            yield from _collected(hand_out(tasks, executor, at_home, retries))


def _collected(handed: Iterator[tuple[Task[Todo], list[Outcome] | BaseException]]) -> Iterator[Outcome]:
    for task, outcome in handed:
        if isinstance(outcome, BaseException):
            text = " ".join(str(outcome).split())[:300]
            line = text if isinstance(outcome, UserError) else f"{type(outcome).__name__}: {text}"
            for one in task.jobs:
                write_json(one.record, {"error": line})
                yield Outcome(one.cell, line)
        else:
            yield from outcome


def _score(plan: Plan, cell: Cell, judges: Sequence[Scoring]) -> None:
    for judge in judges:
        try:
            _logged(plan, cell, judge)
        except UserError as error:
            log.warning("%s cannot be scored by %s: %s", cell.title, judge.name, error)


def _logged(plan: Plan, cell: Cell, judge: Scoring) -> None:
    """Score a cell, and log the figures to its run's dashboards the first time."""
    known = judge.path(cell).is_file()
    scores = judge.score(cell)
    run = RunFolder(plan.out / "runs" / cell.name)
    own = cell.runs == (cell.name,)  # no other cell draws the words of this run
    if scores and own and not known and run.manifest_path.is_file():
        rows = [score.as_row() for score in scores]
        word = plan.concepts[cell.concept].word
        log_scores(run.path, word, rows, int(run.read_manifest().get("steps", cell.steps)))


def score_again(plan: Plan, scorers: Sequence[Scorer], progress: bool = True) -> int:
    """Score the pictures that are there by further scorers, without drawing; returns how many cells.

    The scorers are kept beside those of the YAML, and stand in the tables from then on.

    Raises:
        UserError: nothing has been drawn, or a picture cannot be read.
    """
    drawn = [cell for cell in plan.cells if plan.album(cell).complete]
    if not drawn:
        raise UserError(f"no cell of {plan.out} has been drawn: ldm experiment run comes first")
    kept = more_scorers(plan)
    for scorer in scorers:
        judge = Scoring(plan, scorer)
        for cell in tqdm(drawn, desc=judge.name, unit="cell", disable=not progress):
            _logged(plan, cell, judge)
        kept[judge.name] = judge.identity
    write_json(plan.out / MORE, {name: identity.as_dict() for name, identity in kept.items()})
    return len(drawn)
