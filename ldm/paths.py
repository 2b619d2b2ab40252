"""Paths as people write them, and the files that come with the package."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parent


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` at its beginning as the home folder that they stand for.

    Every path that a person gives comes through here once, where it enters: on a command line, in a YAML
    file, in a call. A user that does not exist is left as written.
    """
    return Path(os.path.expanduser(path))


def found(path: str | Path) -> Path:
    """A path to read from, expanded; or the file or folder of this name that comes with the package.

    Documentation and configs name such files as they lie in the repository: ``configs/emoji/holdout.txt``,
    ``ldm/assets/emoji/vocab.txt``. These names work in every folder, also where only a wheel is installed.
    What is there under the name itself comes first.
    """
    given = expanded(path)
    if given.parts[:1] == ("configs",):
        packaged = _configs().joinpath(*given.parts[1:])
    elif given.parts[:2] == ("ldm", "assets"):
        packaged = PACKAGE.joinpath(*given.parts[1:])
    else:
        return given
    return packaged if packaged.exists() and not os.path.lexists(given) else given


def _configs() -> Path:
    """The folder of configs: in the package where setup.py has built it, in a clone beside it."""
    built = PACKAGE / "configs"
    return built if built.is_dir() else PACKAGE.parent / "configs"
