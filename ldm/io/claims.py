"""Whose folder it is: a lock that ends with its process, and what is cleared away when work fails.

A command claims the folder that it writes to. Nobody else can claim it meanwhile, and a killed process holds
nothing. What is complete stays whatever happens; a failed command removes only files that it made itself.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ldm.errors import UserError
from ldm.io import atomic, runs
from ldm.paths import expanded

log = logging.getLogger(__name__)

#: seconds to wait for a lock: another command may hold it for a moment, to see whether it is free
PATIENCE = 0.5
#: seconds after which a temporary file of another machine counts as left by a killed process
OLD = 3600

_held: set[Path] = set()


def is_claimed(folder: Path) -> bool:
    """Whether another process writes to ``folder`` now."""
    lock = folder / runs.LOCK_NAME
    if folder.resolve() in _held or not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written to
        return False


@contextmanager
def claimed(
    folder: Path, *, half: Callable[[Path], bool] | None = None, deep: bool = False
) -> Iterator[Path]:
    """Inside, ``folder`` is this process's alone; it is made if it is missing. May be nested.

    Folders that were made and hold nothing at the end are removed, and so are temporary files of killed
    processes at the start.

    Args:
        half: if an error ends the work in a folder that held nothing before, says of the folder whether
            the files that this process made there are a half result, and go; by default they stay.
        deep: look for temporary files in its subfolders too.

    Raises:
        UserError: another process has claimed it, or it cannot be written to.
    """
    folder = expanded(folder)
    if folder.resolve() in _held:
        yield folder
        return
    with _claim(folder, _missing(folder), half, deep):
        yield folder


@contextmanager
def claimed_new(
    usual: Path, *, half: Callable[[Path], bool] | None = None, deep: bool = False
) -> Iterator[Path]:
    """As :func:`claimed`, of a folder that nobody else gets: ``usual``, or ``usual-2`` and so on."""
    for number in itertools.count(1):
        folder = usual if number == 1 else usual.with_name(f"{usual.name}-{number}")
        missing = _missing(folder)
        runs.make_folder(folder.parent)
        try:
            folder.mkdir()  # of several processes, one succeeds
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise atomic.write_error(folder, error) or error from error
    with _claim(folder, missing, half, deep):
        yield folder


def _missing(folder: Path) -> list[Path]:
    """The folder and its parents as far as they do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


@contextmanager
def _claim(
    folder: Path, missing: list[Path], half: Callable[[Path], bool] | None, deep: bool
) -> Iterator[None]:
    lock = _locked(folder)
    place = folder.resolve()
    made: set[Path] = set()
    _held.add(place)
    atomic.made[place] = made
    try:
        fresh = not runs.holds_something(folder)
        sweep(folder, deep=deep)
        yield
    except Exception:
        if half is not None and fresh and half(folder):
            _remove(folder, made)
        raise
    finally:
        del atomic.made[place]
        _held.discard(place)
        if lock is not None:
            (folder / runs.LOCK_NAME).unlink(missing_ok=True)  # while it is held: who waits looks again
            lock.release()
        for path in missing:
            try:
                path.rmdir()
            except OSError:  # it holds something
                break


def _locked(folder: Path) -> FileLock | None:
    """The folder's lock, taken; None where the file system has no locks."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: choose another folder")
    runs.make_folder(folder)
    lock = FileLock(folder / runs.LOCK_NAME, timeout=PATIENCE)
    for _ in range(3):
        try:
            lock.acquire()
            return lock
        except Timeout:
            raise UserError(
                f"another command is writing to {folder}: wait until it has ended, or choose another folder"
            ) from None
        except FileNotFoundError:  # whoever had claimed it has just removed it
            runs.make_folder(folder)
        except PermissionError as error:
            raise atomic.write_error(folder, error) or error from error
        except OSError as error:
            full = atomic.write_error(folder, error)
            if full is not None and error.errno in atomic.NO_ROOM:
                raise full from error
            log.warning("%s cannot be locked (%s): see that no other command writes to it", folder, error)
            return None
    raise UserError(f"cannot write {folder}: it is removed again and again; choose another folder")


def sweep(folder: Path, *, deep: bool = False) -> None:
    """Remove the temporary files of processes that are no more."""
    places = (Path(place) for place, _, _ in os.walk(folder)) if deep else iter([folder])
    for place in places:
        for path in place.glob(".*.tmp*"):
            if atomic.is_temporary(path) and _left(path):
                atomic.remove_temporary(path)


def _left(path: Path) -> bool:
    """Whether the process that was writing a temporary file is gone."""
    import psutil

    host, pid = atomic.writer_of(path)
    if host == atomic.HOST and pid is not None:
        if pid == os.getpid():
            return path not in atomic.writing
        return not psutil.pid_exists(pid)
    try:
        return time.time() - path.stat().st_mtime > OLD
    except OSError:
        return False


def _remove(folder: Path, made: set[Path]) -> None:
    """Remove the files that were made in ``folder``, its logs, and the folders that are empty then."""
    for path in made:
        if path.is_relative_to(folder.absolute()):
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "logs", ignore_errors=True)
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place) != folder:
            try:
                os.rmdir(place)
            except OSError:  # it holds something
                pass
