"""Other programs' chatter: what Lightning and torch say of hardware, tips and themselves."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning  # noqa: F401  (importing it sets the levels that are set here)

_LOGGERS = ("pytorch_lightning", "lightning", "lightning_fabric", "lightning.pytorch")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back Lightning's messages and both libraries' warnings, as long as it lasts.

    They are shown if the logger ``ldm`` is set to INFO or below, as the command line's ``-v`` does.
    """
    if 0 < logging.getLogger("ldm").level <= logging.INFO:
        yield
        return
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch)\b")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
