"""Scalars as CSV, of which a kill loses none: a row is on the disk as soon as it is logged."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment

from ldm.io.atomic import atomic_write


class CsvLog(CSVLogger):
    """Lightning's, which keeps up to 100 rows in memory and empties the file to add a column."""

    def __init__(self, folder: Path, version: str) -> None:
        super().__init__(folder, name="", version=version, flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as before:
            rows = list(csv.DictReader(before))
        with atomic_write(self.metrics_file_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)
