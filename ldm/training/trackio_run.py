"""A run on Trackio, as a Lightning logger; Trackio keeps it on this machine unless it is told otherwise."""

from __future__ import annotations

import contextlib
import contextvars
import io
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.errors import UserError
from ldm.io.atomic import write_text

if TYPE_CHECKING:
    from ldm.training.fit import LoggingConfig

#: in a run's ``logs``: by which Trackio knows it
RUN_NAME = "trackio-run-name.txt"


class TrackioLog(Logger):
    """One run of a Trackio project.

    Args:
        project: Its name.
        name: Of the run; the project's run of that name goes on, if there is one.
        group: Runs that belong together.
    """

    def __init__(self, project: str, name: str, group: str | None = None) -> None:
        super().__init__()
        self._project, self._name = project, name
        self._run: Any = None
        if getattr(rank_zero_only, "rank", 0) != 0:
            return
        import trackio

        # each in a context of its own: otherwise Trackio ends the run before, and one process has many
        begin = contextvars.Context().run
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = begin(
                trackio.init,
                project=project,
                name=name,
                group=group,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    @property
    def name(self) -> str:
        """The project's."""
        return self._project

    @property
    def version(self) -> str:
        """The run's name."""
        return self._name

    @property
    def experiment(self) -> Any:
        """Trackio's run."""
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Make ``params`` the run's config."""
        self._run.config.update(params if isinstance(params, Mapping) else vars(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, pictures and tables of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Write what is held back, and end the run."""
        if self._run is not None:
            self._finish()

    def _finish(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


def trackio_logger(config: LoggingConfig, folder: Path) -> TrackioLog:
    """A logger whose run has begun, or goes on if the folder has had one.

    Raises:
        UserError: Trackio is not installed, or refuses the project's name.
    """
    try:
        import trackio  # noqa: F401
    except ImportError:
        raise UserError("the logger trackio needs a package: pip install 'ldm[trackio]'") from None
    kept = folder / RUN_NAME
    if kept.is_file():
        name = kept.read_text(encoding="utf-8").strip()
    else:  # Trackio knows a run by its name, and other folders may be called alike
        name = f"{config.name or folder.parent.name}-{secrets.token_hex(2)}"
    try:
        logger = TrackioLog(config.project, name, config.group)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"Trackio refuses the run: {reason}; correct logging.project") from error
    write_text(kept, f"{name}\n")
    return logger
