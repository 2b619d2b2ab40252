"""All runs of a folder at a glance: state, step, loss, scores, and the settings in which they differ.

Everything is read from the run folders, so no account and no server is needed, and the page can be written
again while runs go on.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ldm import yaml_text
from ldm.errors import UserError
from ldm.io.claims import is_claimed
from ldm.io.runs import CONFIG_NAME, MANIFEST_NAME, RunFolder
from ldm.paths import expanded
from ldm.report.curves import line_chart
from ldm.report.html import picture, show, write_page

State = Literal["running", "finished", "stopped"]

#: settings that name a run or say where things are; they differ by their nature
_NAMES = ("images", "placeholder", "init", "model", "checkpoint")
#: a folder below the given one that is looked into
_DEPTH = 4


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it.

    Attributes:
        path: the folder.
        name: its path from the folder that was asked for.
        state: "running" while a process holds it, "finished" with its last pictures, else "stopped".
        word: the placeholder.
        step: optimiser steps done, as far as they were logged.
        steps: those wanted.
        loss: the last one that was measured on the fixed batch; ``None`` before the first.
        seconds: of the training, once it is finished.
        started: UTC, ISO 8601.
        settings: dotted name -> value of ``config.yaml``.
        scores: name -> value, of evaluations that were written into the run's folder.
        curve: (step, loss on the fixed batch).
        picture: the newest samples.
        report: its page, once it is finished.
    """

    path: Path
    name: str
    state: State
    word: str
    step: int
    steps: int | None
    loss: float | None
    seconds: float | None
    started: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[tuple[float, float]] = ()
    picture: Path | None = None
    report: Path | None = None


def find_runs(folder: Path) -> list[Run]:
    """Every run in ``folder`` and below it, the newest first.

    Raises:
        UserError: there is no such folder.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the one that your runs are in")
    found = [read_run(path, folder) for path in _run_folders(folder, _DEPTH)]
    return sorted(found, key=lambda run: (run.started, run.name), reverse=True)


def read_run(path: Path, root: Path | None = None) -> Run:
    """What one run's folder says of it; what is missing or damaged is left out.

    Args:
        path: the folder of a run.
        root: the folder that its name is told from.
    """
    try:
        manifest = RunFolder(path).read_manifest()
    except UserError:
        manifest = {}
    try:
        config = yaml_text.read(path / CONFIG_NAME)
    except UserError:
        config = {}
    settings = _flat(config)
    rows = scalars(path)
    curve = [(step, row["fixed_loss"]) for step, row in rows if "fixed_loss" in row]
    last = max((step for step, _ in rows), default=0)
    step = int(manifest.get("steps", max(last, _saved(path))))
    steps = settings.get("trainer.max_steps")
    pictures = sorted((path / "images").glob("samples_*.png"))
    page = path / "report.html"
    return Run(
        path=path,
        name=str(path.relative_to(root)) if root is not None and path != root else path.name,
        state="running" if is_claimed(path) else "finished" if "finished" in manifest else "stopped",
        word=str(settings.get("placeholder", "")),
        step=step,
        steps=int(steps) if isinstance(steps, int) else None,
        loss=manifest.get("loss", curve[-1][1] if curve else None),
        seconds=manifest.get("seconds"),
        started=str(manifest.get("started", "")),
        settings=settings,
        scores=_scores(path),
        curve=curve,
        picture=pictures[-1] if pictures else None,
        report=page if page.is_file() else None,
    )


def differing(runs: Sequence[Run]) -> list[str]:
    """Dotted names of the settings in which runs differ, without those that name a run."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    told = [name for name in names if name.split(".")[0] not in _NAMES]
    return [name for name in told if len({show(run.settings.get(name)) for run in runs}) > 1]


def columns(runs: Sequence[Run]) -> tuple[list[str], list[list[Any]]]:
    """The table of runs: its head, and a row of plain values for each."""
    scores = list(dict.fromkeys(name for run in runs for name in run.scores))
    settings = differing(runs)
    head = ["run", "word", "state", "step", "loss", "seconds", *scores, *settings]
    rows = []
    for run in runs:
        step = f"{run.step} of {run.steps}" if run.steps else str(run.step)
        if run.state == "stopped" and run.step == run.steps:
            step += ", last pictures missing"
        own = [run.name, run.word, run.state, step, run.loss, run.seconds]
        own += [run.scores.get(name) for name in scores]
        rows.append(own + [run.settings.get(name) for name in settings])
    return head, rows


def _run_folders(folder: Path, depth: int) -> list[Path]:
    if (folder / MANIFEST_NAME).is_file() or (folder / CONFIG_NAME).is_file():
        return [folder]
    if not depth:
        return []
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:  # a folder that may not be read
        return []
    return [run for path in below for run in _run_folders(path, depth - 1)]


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def scalars(path: Path) -> list[tuple[float, dict[str, float]]]:
    """(step, name -> value) of every row of the CSV log; a row that is being written is left out."""
    rows: list[tuple[float, dict[str, float]]] = []
    for file in sorted((path / "logs").glob("csv/**/metrics*.csv")):
        try:
            with open(file, newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    values = {name: float(text) for name, text in row.items() if name and text}
                    rows.append((values.pop("step"), values))
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            continue
    return rows


def _saved(path: Path) -> int:
    """The last step of which an embedding was kept."""
    ends = (file.stem.rpartition("-")[2] for file in (path / "checkpoints").glob("embeddings_gs-*"))
    return max((int(end) for end in ends if end.isdigit()), default=0)


def _scores(path: Path) -> dict[str, float]:
    """Reconstruction and editability of the newest evaluation in the run's folder."""
    files = sorted(path.glob("**/result.json"), key=lambda file: file.stat().st_mtime)
    found: dict[str, float] = {}
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            for name in ("reconstruction", "editability"):
                found[name] = float(result[name]["cosine_of_means"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


@dataclass(frozen=True)
class RunsReport:
    """What the page of all runs shows.

    Attributes:
        title: text.
        runs: one a row, in this order.
        summary: how many runs are in which state.
        refresh: seconds after which a browser loads the page again; 0 never does.
    """

    title: str
    runs: Sequence[Run]
    summary: Mapping[str, object] = field(default_factory=dict)
    manifest: Mapping[str, object] = field(default_factory=dict)
    refresh: int = 0


def write_runs(folder: Path, page: Path, refresh: int = 0) -> list[Run]:
    """Write one self-contained page of all runs in ``folder``, atomically; returns them.

    Args:
        refresh: seconds after which a browser loads the page again; 0 never does.
    """
    runs = find_runs(folder)
    head, rows = columns(runs)
    states = {state: sum(run.state == state for run in runs) for state in ("running", "finished", "stopped")}
    report = RunsReport(f"Runs in {folder}", runs, {"runs": len(runs), **states}, refresh=refresh)
    table = [
        {
            "cells": [
                (show(value), value if isinstance(value, int | float) else show(value)) for value in row
            ],
            "picture": picture(run.picture) if run.picture else None,
            "chart": line_chart("loss on the fixed batch", run.curve) if run.curve else "",
            "link": quote(os.path.relpath(run.report, expanded(page).parent)) if run.report else "",
            "state": run.state,
        }
        for run, row in zip(runs, rows, strict=True)
    ]
    write_page("runs", page, report, head=head, rows=table)
    return runs
