"""The run on Weights & Biases: online where that is possible, else offline; never a reason not to train."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import UserError
from ldm.io.atomic import write_text

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from ldm.training.fit import LoggingConfig

log = logging.getLogger(__name__)

#: in a run's ``logs``: by which W&B knows it
RUN_ID = "wandb-run-id.txt"
#: seconds until a network that does not answer counts as none, and until an answer to a new run is due
REACH, ANSWER = 8.0, 30.0
#: what users may set WANDB_MODE to -> what it means
MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def wandb_logger(config: LoggingConfig, folder: Path) -> Logger:
    """A logger whose run has begun, in ``folder``.

    ``WANDB_MODE`` wins over the config. A run that should be online is begun offline, with a warning, where
    there is no network or the server does not answer.

    Raises:
        UserError: a name, an option or a key that W&B refuses.
    """
    import wandb

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # wandb's own reports to its maker
    try:
        mode = _mode(config)
    except wandb.errors.Error as error:  # a key that can be none
        raise _refused(error) from error
    if mode == "online" and not _reachable(wandb.setup().settings.base_url):
        log.warning("wandb: no network, logging offline under %s; `wandb sync` uploads it later", folder)
        mode = "offline"
    try:
        return _begun(config, folder, mode)
    except wandb.errors.Error as error:
        if mode != "online" or not _is_silence(error):
            raise _refused(error) from error
    except (TypeError, ValueError) as error:
        raise _refused(error) from error
    log.warning("wandb: no answer, logging offline under %s; `wandb sync` uploads it later", folder)
    return _begun(config, folder, "offline")


def _mode(config: LoggingConfig) -> str:
    """online, offline or disabled."""
    import wandb

    given = os.environ.get("WANDB_MODE", "").strip().lower()
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes"):
        return "disabled"
    if given and given not in MODES:
        raise UserError(f"WANDB_MODE is {given!r}; set it to online, offline or disabled, or unset it")
    if given:
        return MODES[given]
    if config.wandb_mode != "auto":
        return config.wandb_mode
    # looks for a key, and asks neither user nor server
    known = wandb.run is not None or wandb.login(prompt=False, verify=False)
    return "online" if known else "offline"


def _begun(config: LoggingConfig, folder: Path, mode: str) -> Logger:
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    options = dict(config.options)
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        options.setdefault("settings", wandb.Settings(init_timeout=ANSWER))
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / RUN_ID
    if "id" not in options:  # a run that goes on is the same one on the dashboard
        options["id"] = kept.read_text().strip() if kept.is_file() else secrets.token_hex(4)
    logger = WandbLogger(
        project=config.project,
        name=config.name or folder.parent.name,
        save_dir=str(folder),
        mode=mode,
        tags=list(config.tags) or None,
        **{**config.labels, **options},
    )
    _ = logger.experiment  # now, not in the middle of the training's start
    if mode != "disabled":
        write_text(kept, f"{options['id']}\n")
    return logger


def _reachable(url: str) -> bool:
    """Whether a server answers at all, through the proxies of the environment."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, ValueError):
            return
        found.append(True)

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any timeout
    asking.start()
    asking.join(REACH)
    return bool(found)


def _is_silence(error: Exception) -> bool:
    """Whether nobody has answered, rather than refused."""
    text = str(error).lower()
    return any(word in text for word in ("timed out", "deadline", "retrying", "connection", "dial tcp"))


def _refused(error: Exception) -> UserError:
    lines: list[Any] = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"W&B refuses the run: {lines[0][:200]}; correct WANDB_API_KEY and the logging settings (project, "
        "name, tags, options), or set WANDB_MODE=offline"
    )
