"""Which loggers a run has: CSV files, TensorBoard, W&B, MLflow, Trackio, or one of the user's."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from ldm.errors import UserError
from ldm.io.files import printable
from ldm.training.csv_log import CsvLog
from ldm.training.mlflow_run import mlflow_logger
from ldm.training.trackio_run import trackio_logger
from ldm.training.wandb_run import wandb_logger

if TYPE_CHECKING:
    from ldm.training.fit import LoggingConfig

log = logging.getLogger(__name__)

#: what every file may name
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow", "trackio")


def make_loggers(config: LoggingConfig, folder: Path) -> list[Logger]:
    """Loggers of a run folder, whose runs have begun; ``folder`` is its ``logs``.

    Raises:
        UserError: as ``check_loggers``, or a logger that does not take the run.
    """
    return [logger for name in config.loggers if (logger := _made(name, config, folder)) is not None]


def _made(name: str, config: LoggingConfig, folder: Path) -> Logger | None:
    if name == "csv":
        return CsvLog(folder, _unused(folder, "csv"))
    if name == "tensorboard":
        if printable(folder) != str(folder):
            log.warning("TensorBoard cannot write to %s, whose name is not UTF-8: the scalars are in the CSV",
                        folder)  # fmt: skip
            return None
        return TensorBoardLogger(folder, name="", version="tensorboard")
    if name == "wandb":
        return wandb_logger(config, folder)
    if name == "mlflow":
        return mlflow_logger(config, folder)
    if name == "trackio":
        return trackio_logger(config, folder)
    return _own(name, config, folder)


# ------------------------------------------------------------------ loggers of the user's own

#: dotted names that the user of this process has given
_trusted: set[str] = set()


def trust(names: Iterable[object]) -> None:
    """Let settings name these loggers by their dotted names, from here on and in this process.

    Whoever runs the program may name a class whose module is then imported. A file comes from anywhere: what
    it names is refused, unless it has been named here too.
    """
    _trusted.update(name for name in names if isinstance(name, str) and name not in LOGGERS)


def trust_settings(settings: Mapping[str, Any]) -> None:
    """``trust`` the loggers of settings that the user has typed, with keys nested or dotted."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            trust_settings(value)
        elif str(key).rpartition(".")[2] == "loggers" and isinstance(value, list | tuple):
            trust(value)


def check_loggers(config: LoggingConfig) -> None:
    """Refuse a logger that is unknown, that only a file has named, or that is no Lightning logger.

    Raises:
        UserError: says which names there are.
    """
    for name in config.loggers:
        if name not in LOGGERS:
            _class(name)


def _class(name: str) -> type[Logger]:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise UserError(f"unknown logger {name!r}; choose from {', '.join(LOGGERS)}, or give a dotted name")
    if name not in _trusted:
        raise UserError(
            f"the logger {name!r} is refused: a file cannot name code to run; if you trust it, give "
            f"--set logging.loggers=[csv,{name}]"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the logger {name!r} cannot be imported ({error})") from None
    if not (isinstance(found, type) and issubclass(found, Logger)):
        raise UserError(f"{name!r} is no logger: it must be a class derived from Lightning's Logger")
    return found


def _own(name: str, config: LoggingConfig, folder: Path) -> Logger:
    """A logger of any class; of what a run can say, its constructor is given what it takes."""
    cls = _class(name)
    run = config.name or folder.parent.name
    known = {
        "save_dir": str(folder),
        "project": config.project,
        "experiment_name": config.project,
        "name": run,
        "run_name": run,
    }
    takes = inspect.signature(cls).parameters
    try:
        return cls(**{key: value for key, value in known.items() if key in takes})
    except Exception as error:  # whatever a constructor of anyone's makes of it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the logger {name!r} cannot be made: {reason}") from error


def pack_loggers(config: LoggingConfig, run: Path) -> list[Logger]:
    """Loggers of one of many runs that train in this process; on W&B each is a run of its own, called as its
    folder."""
    name = f"{config.name}-{run.name}" if config.name else run.name
    own = replace(config, name=name, options={"reinit": "create_new", **config.options})
    return make_loggers(own, run / "logs")


def _unused(folder: Path, name: str) -> str:
    """``name``, or ``name-2`` ...: a CSV logger empties its folder, and a resumed run keeps its past."""
    taken = sum(1 for path in folder.glob(f"{name}*/metrics.csv"))
    return f"{name}-{taken + 1}" if taken else name
