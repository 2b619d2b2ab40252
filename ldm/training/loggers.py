"""Where the scalars and pictures of a run go: CSV files, TensorBoard, Weights & Biases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from ldm.errors import UserError
from ldm.io.files import printable
from ldm.training.csv_log import CsvLog
from ldm.training.wandb_run import wandb_logger

if TYPE_CHECKING:
    from ldm.training.fit import LoggingConfig

log = logging.getLogger(__name__)


def make_loggers(config: LoggingConfig, folder: Path) -> list[Logger]:
    """Loggers of a run folder; wandb falls back to offline without an account or a network."""
    made: list[Logger] = []
    for name in config.loggers:
        if name == "csv":
            made.append(CsvLog(folder, _unused(folder, "csv")))
        elif name == "tensorboard" and printable(folder) != str(folder):
            log.warning("TensorBoard cannot write to %s, whose name is not UTF-8: the scalars are in the CSV",
                        folder)  # fmt: skip
        elif name == "tensorboard":
            made.append(TensorBoardLogger(folder, name="", version="tensorboard"))
        elif name == "wandb":
            made.append(wandb_logger(config, folder))
        else:
            raise UserError(f"unknown logger {name!r}; choose from csv, tensorboard, wandb")
    return made


def pack_loggers(config: LoggingConfig, run: Path) -> list[Logger]:
    """Loggers of one of many runs that train in this process; on W&B each is a run of its own, called as its
    folder."""
    name = f"{config.name}-{run.name}" if config.name else run.name
    own = replace(config, name=name, options={"reinit": "create_new", **config.options})
    return make_loggers(own, run / "logs")


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Write what loggers hold back, and end their runs."""
    for logger in loggers:
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _unused(folder: Path, name: str) -> str:
    """``name``, or ``name-2`` ...: a CSV logger empties its folder, and a resumed run keeps its past."""
    taken = sum(1 for path in folder.glob(f"{name}*/metrics.csv"))
    return f"{name}-{taken + 1}" if taken else name
