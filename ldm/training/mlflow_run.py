"""A run on MLflow: Lightning's logger, which goes on in the run that the folder keeps the id of."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import MLFlowLogger

from ldm.errors import UserError
from ldm.io.atomic import write_text

if TYPE_CHECKING:
    from ldm.training.fit import LoggingConfig

#: in a run's ``logs``: by which MLflow knows it
RUN_ID = "mlflow-run-id.txt"


class MLflowLog(MLFlowLogger):
    """Lightning's, for names of words such as ``norm/<cat>``, of which MLflow takes the letters alone."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({key(name): value for name, value in metrics.items()}, step)


def key(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w/. -]+", "", name, flags=re.ASCII).strip() or "value"


def mlflow_logger(config: LoggingConfig, folder: Path) -> MLflowLog:
    """A logger whose run has begun, on the server or in the database that MLflow itself would choose.

    ``MLFLOW_TRACKING_URI`` names it; without it, that is ``mlflow.db`` in the current folder.

    Raises:
        UserError: MLflow is not installed, or its server does not take the run.
    """
    try:
        import mlflow
    except ImportError:
        raise UserError("the logger mlflow needs a package: pip install 'ldm[mlflow]'") from None
    for noisy in ("mlflow", "alembic"):  # the tables of a new database, one by one
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.loggers.mlflow").setLevel(logging.ERROR)
    kept = folder / RUN_ID
    tags = {"mlflow.runName": config.name or folder.parent.name, **config.labels}
    tags |= {f"tag.{tag}": "" for tag in config.tags}
    begun = kept.read_text(encoding="utf-8").strip() if kept.is_file() else None
    where = os.environ.get("MLFLOW_TRACKING_URI") or mlflow.get_tracking_uri()
    try:
        logger = MLflowLog(config.project, tracking_uri=where, tags=tags, run_id=begun)
        _ = logger.experiment  # now, not in the middle of the training's start
        if begun:
            logger.experiment.update_run(begun, status="RUNNING")
        run = logger.run_id
    except Exception as error:  # of the database's driver, the client, the server
        raise _refused(error, where) from error
    if run is not None:  # this process is the first one
        write_text(kept, f"{run}\n")
    return logger


def _refused(error: Exception, where: str) -> UserError:
    reason: list[Any] = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"MLflow at {where} refuses the run: {reason[0][:200]}; set MLFLOW_TRACKING_URI to a server or a "
        "database such as sqlite:///mlflow.db, or leave mlflow out of logging.loggers"
    )
