"""The tables of an experiment: a row for each cell and figure, and a row for each setup and figure.

Figures of a concept are averaged over its seeds first. Intervals are 95 % intervals by bootstrap over
concepts, and differences to the baseline are taken between cells of one concept and seed, whose pictures
start from the same noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.evaluation import metrics
from ldm.evaluation.scorers import Identity, Score, require_same
from ldm.evaluation.scorers.protocols import paired_difference
from ldm.experiments.plan import Cell, Plan
from ldm.experiments.scores import BORDER, BORDER_IDENTITY, more_scorers, read_scores, score_path
from ldm.experiments.work import read_record
from ldm.io.atomic import atomic_write
from ldm.io.tables import write_csv

#: Columns that differ between two runs of one experiment on one machine.
TIMES = ("seconds", "peak_memory_mb")
_BUDGET = ("commit", "machine", "threads", "seconds", "steps", "pictures_seen", "peak_memory_mb", "loss")

Figure = tuple[str, str, str]
"""Scorer, metric and references: what figures must share to stand in one row."""
Scored = tuple[Cell, Score]


def scorers_of(plan: Plan) -> dict[str, Identity]:
    """Name -> identity, of the scorers of the YAML and of those that were used beside them."""
    found = {**plan.scorers, **more_scorers(plan)}
    if plan.config.score.backgrounds:
        found[BORDER] = BORDER_IDENTITY
    return found


def scored(plan: Plan) -> list[Scored]:
    """All figures that there are, cell by cell."""
    scorers = scorers_of(plan)
    return [
        (cell, score)
        for cell in plan.cells
        for name, identity in scorers.items()
        for score in read_scores(score_path(plan, cell, name, identity)) or ()
    ]


def cell_rows(plan: Plan, figures: Sequence[Scored]) -> list[dict[str, Any]]:
    """A row for each cell and figure, with what the cell took and its difference to the baseline's cell."""
    baseline = plan.config.compared_with
    at_baseline = {
        (cell.concept, cell.seed, *_figure(score)): score.figure
        for cell, score in figures
        if cell.setup == baseline
    }
    rows = []
    for cell, score in figures:
        record = read_record(plan.out, cell) or {}
        other = at_baseline.get((cell.concept, cell.seed, *_figure(score)))
        rows.append(
            {
                "cell": cell.key,
                "concept": cell.concept,
                "setup": cell.setup,
                "seed": cell.seed,
                **{name: record.get(name) for name in _BUDGET},
                **score.as_row(),
                "baseline": baseline,
                "difference": None if other is None else score.figure - other,
            }
        )
    return rows


def setup_rows(plan: Plan, figures: Sequence[Scored]) -> list[dict[str, Any]]:
    """A row for each setup and figure, with intervals, in the order of the YAML.

    One concept has no interval: its bounds are ``None``.

    Raises:
        UserError: figures that would stand in one row were measured differently.
    """
    baseline = plan.config.compared_with
    kinds = list(dict.fromkeys(_figure(score) for _, score in figures))
    rows = []
    for kind in kinds:
        of_kind = [(cell, score) for cell, score in figures if _figure(score) == kind]
        for setup in plan.config.grid.setups:
            own = _by_concept(of_kind, setup)
            if not own:
                continue
            cells = [(cell, score) for cell, score in of_kind if cell.setup == setup]
            values = [score.figure for score in own.values()]
            low, high = metrics.bootstrap(values) if len(values) > 1 else (None, None)
            ceilings = [score.ceiling for score in own.values() if score.ceiling is not None]
            one = next(iter(own.values()))
            rows.append(
                {
                    "setup": setup,
                    "scorer": one.scorer,
                    "metric": one.metric,
                    "references": one.references,
                    "figure": _mean(values),
                    "low": low,
                    "high": high,
                    "ceiling": _mean(ceilings) if ceilings else None,
                    "concepts": len(own),
                    "cells": len(cells),
                    "n": sum(score.n for _, score in cells),
                    "baseline": baseline,
                    **_compared(of_kind, setup, baseline),
                    **_budget(plan, [cell for cell, _ in cells]),
                    **one.identity.as_dict(),
                }
            )
    return rows


def compare(
    figures: Sequence[Scored], setup: str, other: str
) -> tuple[float, tuple[float, float], int] | None:
    """Mean paired difference of two setups in one kind of figure, its interval, and how many concepts it has.

    Only cells count whose concept and seed both setups have; ``None`` if there is no such cell.

    Raises:
        UserError: they were measured differently.
    """
    ours, theirs = ({(c.concept, c.seed) for c, _ in figures if c.setup == name} for name in (setup, other))
    both = ours & theirs
    if not both:
        return None
    shared = [(cell, score) for cell, score in figures if (cell.concept, cell.seed) in both]
    a, b = _by_concept(shared, setup), _by_concept(shared, other)
    difference, interval = paired_difference(a, b)
    return difference, interval, len(a)


def of_figure(figures: Iterable[Scored], metric: str, scorer: str) -> list[Scored]:
    """The figures of one metric by one scorer."""
    return [(cell, score) for cell, score in figures if (score.metric, score.scorer) == (metric, scorer)]


def _figure(score: Score) -> Figure:
    return score.scorer, score.metric, score.references


def _by_concept(figures: Iterable[Scored], setup: str) -> dict[str, Score]:
    """Concept -> the mean over its seeds, as one score; refuses figures that were measured differently."""
    found: dict[str, list[Score]] = {}
    for cell, score in figures:
        if cell.setup == setup:
            found.setdefault(cell.concept, []).append(score)
    if found:
        require_same(score for scores in found.values() for score in scores)
    return {
        concept: replace(
            scores[0],
            figure=_mean([score.figure for score in scores]),
            n=sum(score.n for score in scores),
        )
        for concept, scores in found.items()
    }


def _compared(figures: Sequence[Scored], setup: str, baseline: str) -> dict[str, float | None]:
    found = None if setup == baseline else compare(figures, setup, baseline)
    if found is None:
        return {"difference": None, "difference_low": None, "difference_high": None}
    low, high = found[1] if found[2] > 1 else (None, None)
    return {"difference": found[0], "difference_low": low, "difference_high": high}


def _budget(plan: Plan, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the cells took: means, the highest memory, and all commits and machines."""
    records = [record for cell in cells if (record := read_record(plan.out, cell)) and "error" not in record]
    means = {
        name: _mean([float(record[name]) for record in records if record.get(name) is not None] or [0.0])
        for name in ("steps", "pictures_seen", "seconds")
    }
    memory = [record["peak_memory_mb"] for record in records if record.get("peak_memory_mb") is not None]
    named = {
        name: "; ".join(dict.fromkeys(str(record.get(name)) for record in records))
        for name in ("commit", "machine", "threads")
    }
    return {**named, **means, "peak_memory_mb": max(memory) if memory else None}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------ files
def write_tables(plan: Plan) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write ``cells`` and ``table``, as CSV and, where pyarrow is installed, as parquet.

    Returns:
        The rows of the setups, and the files.

    Raises:
        UserError: figures that would stand in one row were measured differently.
    """
    figures = scored(plan)
    by_setup = setup_rows(plan, figures)
    files = []
    for name, rows in (("cells", cell_rows(plan, figures)), ("table", by_setup)):
        if rows:
            files += write_rows(rows, plan.out / name)
    return by_setup, files


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> list[Path]:
    """Rows of the same columns as ``path.csv`` and ``path.parquet``; the latter only with pyarrow."""
    files = [write_csv(rows, path.with_suffix(".csv"))]
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return files
    with atomic_write(path.with_suffix(".parquet")) as temporary:
        parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), temporary)
    return [*files, path.with_suffix(".parquet")]
