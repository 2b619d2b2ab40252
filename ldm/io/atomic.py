"""Files written whole or not at all: to a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ldm.errors import UserError
from ldm.io.files import opened, unreadable

#: temporary files of writes that go on now, and for every claimed folder the files made since (claims.py)
writing: set[Path] = set()
made: dict[Path, set[Path]] = {}

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder, then run again",
    errno.EDQUOT: "your disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "the file is larger than this system allows: choose another folder",
    errno.EACCES: "permission denied: choose a folder that you may write to",
    errno.EPERM: "permission denied: choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EEXIST: "a part of that path is a file, not a folder: choose another path",
    errno.EISDIR: "that path is a folder: give a file name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EIO: "the disk reports an input/output error: check it or choose another folder",
}


#: torch's C++ file writer keeps no errno: its words when a write fails.
_TORCH_WRITER = r"inline_container\.cc|iostream error|PytorchStreamWriter"


#: errors of a disk that has no room left
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


# ------------------------------------------------------------------------- atomic writes
#: of this machine, in the names of temporary files
HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


_TEMPORARY = re.compile(r"\..*\.(?:([0-9a-f]{8})-([0-9a-f]+)-[0-9a-f]{8}|[0-9a-f]{12})\.tmp(\.[^.]*)?")


def _temporary(path: Path) -> Path:
    """A hidden, unused name beside ``path``; the suffix stays, writers choose a format by it."""
    writer = f"{HOST}-{os.getpid():x}-{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem[:80]}.{writer}.tmp{path.suffix}")


def is_temporary(path: Path) -> bool:
    """Whether a file has a name that :func:`atomic_write` gives while it writes."""
    return _TEMPORARY.fullmatch(path.name) is not None


def writer_of(path: Path) -> tuple[str | None, int | None]:
    """Machine and process of a temporary file, as far as its name tells."""
    found = _TEMPORARY.fullmatch(path.name)
    host, pid = (found[1], found[2]) if found else (None, None)
    return host, None if pid is None else int(pid, 16)


def _errno_of(error: BaseException | None) -> int | None:
    """The errno behind ``error``, looked for along its causes and, last, in its text.

    torch's and safetensors' writers live below Python and turn an ``OSError`` into a
    ``RuntimeError`` or a ``SafetensorError``: the first keeps it as context, the second prints it.
    """
    seen: set[int] = set()
    first = error
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    text = str(first)
    for number in _REASONS:
        if f"os error {number})" in text or os.strerror(number) in text:
            return number
    return None


def write_error(path: Path | str, error: BaseException) -> UserError | None:
    """The one-line :class:`UserError` for a failed write of ``path``; None if it was not one."""
    number = _errno_of(error)
    if number is not None:
        reason = _REASONS.get(number, f"{os.strerror(number)}: choose another folder")
    elif isinstance(error, RuntimeError) and re.search(_TORCH_WRITER, str(error)):
        reason = "writing failed, most likely because the disk is full: free some space"
    else:
        return None
    return UserError(f"cannot write {path}: {reason} (nothing was left half-written)")


@contextmanager
def atomic_write(path: Path | str, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it is flushed and renamed to ``path``.

    Parents are created. If the body or the disk fails the temporary file is removed and an older
    file at ``path`` is untouched; a failed write is a :class:`UserError`, other errors pass. Without
    ``overwrite``, a file that is there by then is one too.

    >>> with atomic_write("out/picture.png") as temporary:   # doctest: +SKIP
    ...     image.save(temporary)
    """
    path = Path(path)
    temporary = _temporary(path)
    writing.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # fails early, and tells the mode that this user's files have
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        os.chmod(temporary, mode)  # safetensors makes its files private
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        new = not path.exists()
        if overwrite:
            os.replace(temporary, path)
        else:
            _place(temporary, path)
        for paths in list(made.values()) if new else ():
            paths.add(path.absolute())
        _sync_folder(path.parent)
    except UserError:
        raise
    except Exception as error:
        # A missing or unreadable *other* file inside the body is not a failed write of this one.
        name = getattr(error, "filename", None)
        foreign = isinstance(name, str | os.PathLike) and not _ours(
            Path(name), {temporary, path, *path.parents}
        )
        readable = None if foreign else write_error(path, error)
        if readable is None:
            raise
        raise readable from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # its folder is gone or is a file: nothing was written there
            pass
        writing.discard(temporary)


@contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, removed at the end, for a writer that makes temporary files of its own.

    If the process is killed, the folder is found by its name like any temporary file, and what is in it
    goes with it.
    """
    folder = _temporary(path)
    writing.add(folder)
    try:
        folder.mkdir()
        yield folder
    finally:
        remove_temporary(folder)
        writing.discard(folder)


def remove_temporary(path: Path) -> None:
    """Remove a temporary file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _ours(name: Path, known: set[Path]) -> bool:
    return name in known or is_temporary(name) or is_temporary(name.parent)


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name, unless that is taken: of two processes, one is told."""
    taken = UserError(f"{path} exists: choose another name, or overwrite it by --force")
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise taken from None
    except OSError:  # a file system without hard links
        if path.exists():
            raise taken from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems refuse fsync on a folder; the file itself is on the disk
        pass
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Writes ``data`` to ``path`` atomically. Errors as :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: Path | str, text: str) -> Path:
    """Writes ``text`` as UTF-8 to ``path`` atomically. Errors as :func:`atomic_write`.

    A byte of a file's name that is no UTF-8 is written as the escape that JSON has for it, ``\\udce9``.
    """
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path | str, value: object) -> Path:
    """Writes ``value`` as indented JSON to ``path`` atomically. Errors as :func:`atomic_write`."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------- hashes
def file_sha256(path: Path | str) -> str:
    """sha256 hex of a file's bytes. :class:`UserError` if the file cannot be read."""
    with opened(path) as handle:
        try:
            return hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from error
