"""Figures that are measured after a run, on the run's dashboards."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.resume import kept_config
from ldm.io.runs import CONFIG_NAME, MANIFEST_NAME
from ldm.training.dashboard import Dashboard, Shot
from ldm.training.loggers import LOGGERS, make_loggers

log = logging.getLogger(__name__)


def run_of(folder: Path) -> Path | None:
    """The run that a folder is in, or is; ``None`` if it is in none."""
    for path in (folder, *folder.absolute().parents):
        if (path / CONFIG_NAME).is_file() and (path / MANIFEST_NAME).is_file():
            return path
    return None


def log_scores(
    run: Path,
    word: str,
    rows: Sequence[Mapping[str, Any]],
    step: int,
    pictures: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Log figures to the dashboards that a run went to; it goes on there for so long.

    The CSV file is left as it is, and so is a logger that only the run's own command could name.

    Args:
        run: its folder.
        word: that was measured; one that the run has not learned is not logged.
        rows: of ``Score.as_row``.
        step: optimiser steps that the word had learned for.
        pictures: ``prompt``, ``seed``, ``file`` and ``scores`` (name -> figure) of each.
    """
    try:
        config = kept_config(run, InversionConfig)
    except UserError as error:  # the settings of another kind of run, or of another version
        log.warning("the figures are not on the dashboards of %s: %s", run.name, error)
        return
    if config is None or word not in config.words:
        return
    names = tuple(name for name in config.logging.loggers if name in LOGGERS and name != "csv")
    own = replace(config.logging, loggers=names, options={"reinit": "create_new", **config.logging.options})
    dashboard = Dashboard(make_loggers(own, run / "logs"))
    dashboard.scores(rows, step)
    shots = []
    for one in pictures:
        with Image.open(one["file"]) as image:
            shots.append(Shot(one["prompt"], one["seed"], step, image.convert("RGB"), one["scores"]))
    if shots:
        dashboard.samples(shots, "evaluation")
    dashboard.close()
