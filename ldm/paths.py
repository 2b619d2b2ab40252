"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` at its beginning as the home folder that they stand for.

    Every path that a person gives comes through here once, where it enters: on a command line, in a YAML
    file, in a call. A user that does not exist is left as written.
    """
    return Path(os.path.expanduser(path))
