"""Every row is on the disk when it has been logged, and a new column loses none."""

import csv
import os
import signal
from pathlib import Path

import pytest

from ldm.training.csv_log import CsvLog


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_the_disk_when_the_process_is_killed(tmp_path):
    child = os.fork()
    if child == 0:
        logger = CsvLog(tmp_path, "csv")
        for step in range(7):
            logger.log_metrics({"loss": step / 2}, step)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(str(i), str(i / 2)) for i in range(7)]


def test_a_new_column_keeps_the_rows_and_a_failure_at_it_too(tmp_path, monkeypatch):
    logger = CsvLog(tmp_path, "csv")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"rate": 0.5}, 1)
    assert [row["loss"] for row in rows(tmp_path)] == ["1.0", ""]

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ldm.io.runs.os.replace", cut)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"third": 2.0}, 2)
    assert [row["rate"] for row in rows(tmp_path)] == ["", "0.5"]
