"""One place tells every logger of a run the same: what it is, how it goes, what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.training.boards.base import About, Board, Shot

__all__ = ["About", "Dashboard", "Shot"]


class Dashboard:
    """The loggers of a run as one.

    Args:
        loggers: Any of Lightning's. W&B, TensorBoard, MLflow and Trackio show everything; of any other, what
            every ``Logger`` can is used: settings and scalars.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        first = getattr(rank_zero_only, "rank", 0) == 0  # of several processes, one logs
        self._boards = [_board(logger) for logger in loggers] if first else []

    def begin(self, about: About) -> None:
        """Say what the run is, before its first step."""
        self._tell(lambda board: board.begin(about))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of ``step``."""
        self._tell(lambda board: board.scalars(values, step))

    def pictures(self, shots: Sequence[Shot]) -> None:
        """Show the pictures of each prompt at their step."""
        self._tell(lambda board: board.pictures(shots))

    def words(self, nearest: Mapping[str, Sequence[Sequence[Any]]], step: int) -> None:
        """Show for each learned word the nearest words of the vocabulary, with their cosines, as pairs."""
        self._tell(lambda board: board.words(nearest, step))

    def samples(self, shots: Sequence[Shot], name: str = "samples") -> None:
        """Show pictures as a table of prompt, seed, step, scores and picture."""
        rows = [{**shot.row(), "picture": shot.picture} for shot in shots]
        step = max((shot.step for shot in shots), default=0)
        self._tell(lambda board: board.table(name, rows, step))

    def scores(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log the figures of an evaluation: rows of ``Score.as_row``, as scalars and as a table."""
        values = {score_name(row): float(row["figure"]) for row in rows if row["figure"] is not None}
        plain = [{name: _plain(value) for name, value in row.items()} for row in rows]

        def tell(board: Board) -> None:
            board.scalars(values, step)
            board.table("scores", plain, step)

        self._tell(tell)

    def embedding(self, file: Path, about: About, metadata: Mapping[str, Any]) -> None:
        """Keep the learned words with what they come from."""
        self._tell(lambda board: board.embedding(file, about, metadata))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Say what came of the run in a few values; ``steps`` is one of them."""
        self._tell(lambda board: board.summary(values))

    def close(self, status: str = "success") -> None:
        """Write what loggers hold back and end their runs; ``status`` is ``success`` or ``failed``."""
        self._tell(lambda board: board.close(status))

    def _tell(self, what: Callable[[Board], None]) -> None:
        for board in self._boards:
            what(board)


def score_name(row: Mapping[str, Any]) -> str:
    """``score/<scorer>/<metric>``, for a row of ``Score.as_row``; ``/`` is left to part these three."""
    parts = (re.sub(r"\s*/\s*", "-", str(row[name])) for name in ("scorer", "metric"))
    return "/".join(["score", *parts])


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


class _CsvBoard(Board):
    """Scalars alone: everything else is in the run's folder anyway, where the CSV file is."""

    def begin(self, about: About) -> None:
        pass


def _board(logger: Logger) -> Board:
    from ldm.training.boards.mlflow import MLflowBoard
    from ldm.training.boards.tensorboard import TensorBoardBoard
    from ldm.training.boards.trackio import TrackioBoard
    from ldm.training.boards.wandb import WandbBoard
    from ldm.training.mlflow_run import MLflowLog
    from ldm.training.trackio_run import TrackioLog

    kinds: list[tuple[type[Logger], type[Board]]] = [
        (CSVLogger, _CsvBoard),
        (TensorBoardLogger, TensorBoardBoard),
        (WandbLogger, WandbBoard),
        (MLflowLog, MLflowBoard),
        (TrackioLog, TrackioBoard),
    ]
    for logs, board in kinds:
        if isinstance(logger, logs):
            return board(logger)
    return Board(logger)
