"""A run's folder: atomic writes, the manifest, hashes of pictures.

Whatever this project writes goes through :func:`atomic_write`: a temporary name in the same
folder, flushed to the disk, then renamed. A reader therefore sees the old file or the new one,
never a part of one, and a full disk leaves nothing behind.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.io.atomic import _temporary, is_temporary, write_error, write_json
from ldm.io.secrets import redacted_values, redacted_words
from ldm.paths import expanded

MANIFEST_VERSION = 1
MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
LIST_NAME = "concepts.yaml"  # in the folder of a list of concepts: the list as it was resolved
LOCK_NAME = ".ldm-lock"  # in a folder that is claimed (claims.py), or was when its process was killed
_PACKAGES = ("ldm", "torch", "pytorch-lightning", "safetensors", "pillow", "numpy")


# ---------------------------------------------------------------------------- manifest
def versions() -> dict[str, str]:
    """Versions of Python, this project and the packages a run depends on, by installed metadata."""
    return {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}


@cache  # the metadata take milliseconds to read, and a list of concepts asks for every one
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def now() -> str:
    """The present time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; made by :func:`create_run`.

    Holds ``config.yaml``, ``embeddings/``, ``images/``, ``logs/``, ``checkpoints/``,
    ``manifest.json`` and ``report.html``; the subfolders come into being with their first file.
    """

    path: Path

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST_NAME

    def file(self, *parts: str) -> Path:
        """A path inside the run, its folder created. :class:`UserError` if that is not possible."""
        target = self.path.joinpath(*parts)
        make_folder(target.parent)
        return target

    def write_manifest(
        self,
        *,
        seed: int,
        image_hashes: Mapping[str, str],
        base_model: str,
        command: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Path:
        """Writes ``manifest.json``: what is needed to make the run again or to doubt it.

        image_hashes: file name -> sha256 hex. base_model: the fingerprint (hex).
        command: argument vector, the process's own by default. extra: further JSON values.
        A resumed run keeps the ``started`` time and lists every command in ``commands``.
        """
        before = self.read_manifest() if self.manifest_path.exists() else {}
        commands = list(before.get("commands", []))
        words = redacted_words(sys.argv if command is None else command)
        commands.append(shlex.join(_neutral(words)))
        return write_json(
            self.manifest_path,
            {
                **{k: v for k, v in before.items() if k != "finished"},
                "format": MANIFEST_VERSION,
                "versions": versions(),
                "platform": platform.platform(),
                "seed": seed,
                "base_model": base_model,
                "image_hashes": redacted_values(image_hashes),
                "commands": commands,
                "started": before.get("started", now()),
                **redacted_values(extra or {}),
            },
        )

    def update_manifest(self, **values: Any) -> Path:
        """Merges ``values`` into the manifest, e.g. ``finished=now(), steps=500``."""
        return write_json(self.manifest_path, {**self.read_manifest(), **redacted_values(values)})

    def read_manifest(self) -> dict[str, Any]:
        """The manifest. :class:`UserError` if it is missing or no JSON object."""
        try:
            value = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"cannot read {self.manifest_path}: is {self.path} the folder of a run?"
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{self.manifest_path} is not a manifest: give the folder of a run")
        return value


def _neutral(command: Sequence[str]) -> list[str]:
    """The command with the program's own folder cut off: a manifest is meant to be shared."""
    return [Path(command[0]).name, *command[1:]] if command else []


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. :class:`UserError` if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) or error from error


def create_run(out: Path | str, *, resume: bool = False) -> RunFolder:
    """Creates the folder ``out`` of a run and checks that it can be written.

    Whoever writes there claims it first (``ldm.io.claims``). Raises :class:`UserError` if it holds
    something (with ``resume``: something that is no run, not even the beginning of one), if it is a file,
    or if nothing can be written there.
    """
    path = expanded(out)
    if path.is_file():
        raise UserError(f"{path} is a file: choose another folder for the run")
    try:
        used = holds_something(path)
    except OSError as error:
        raise write_error(path, error) or error from error
    begun = any((path / name).is_file() for name in (CONFIG_NAME, MANIFEST_NAME))
    if used and not resume:
        raise UserError(
            f"the folder {path} is not empty: choose another one"
            + (", or go on with the run that is in it by --resume" if begun else "")
        )
    if used and not begun:
        raise UserError(
            f"{path} holds something, but no run: there is no {CONFIG_NAME} in it; choose another folder"
        )
    _check_writable(path)  # fail now, not after an hour of training
    return RunFolder(path)


def holds_something(folder: Path) -> bool:
    """Whether a folder holds anything but a lock and what killed writes left."""
    try:
        return any(path.name != LOCK_NAME and not is_temporary(path) for path in folder.iterdir())
    except FileNotFoundError:
        return False


def _check_writable(folder: Path) -> None:
    make_folder(folder)
    probe = _temporary(folder / "probe")
    try:
        with open(probe, "wb") as handle:
            os.fsync(handle.fileno())
    except OSError as error:
        raise write_error(folder, error) or error from error
    finally:
        probe.unlink(missing_ok=True)


def slug(text: str, limit: int = 60) -> str:
    """A text as a part of a file name: "a photo of <cat-toy>" gives "a-photo-of-cat-toy"."""
    return re.sub(r"[^\w]+", "-", text).strip("-")[:limit].rstrip("-") or "word"


def stamp() -> str:
    """Local time as the names of run folders hold it."""
    return datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
