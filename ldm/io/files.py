"""Files that may come from anyone, before a reader believes them.

A path may be a folder, a pipe that waits for ever, a page that a failed download left, or more bytes than
any file of its kind has. Every reader of the project opens its file here, so that each of these is one
line that says what the file is.
"""

from __future__ import annotations

import codecs
import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from ldm.errors import UserError

log = logging.getLogger(__name__)

#: longest beginning of a file that :func:`kind_of` looks at
HEAD = 64
#: bytes of a text that a person wrote, such as a caption
MAX_TEXT = 2**20

_FETCH = "fetch it again"
#: what a file is by its first bytes -> what to do about it; the first match counts
_KINDS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), what, remedy)
    for pattern, what, remedy in (
        (rb"\Z", "empty", f"{_FETCH}, the download went wrong"),
        (rb"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
        (
            rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|!--|\?xml[^>]*>\s*<(!doctype )?html)",
            "a web page, not the file itself",
            f"{_FETCH}, by the link for the download and signed in if the site asks for it",
        ),
        (rb"\s*\{\s*\"(error|message|detail)\"", "an error message of a server, not the file itself", _FETCH),
        (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP", "a picture", "give it as one"),
        (
            rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)",
            "a HEIC picture, for which the package pillow-heif is missing",
            "install it by `pip install pillow-heif`, or convert the picture to JPEG",
        ),
        (rb".{4}ftyp(?!avi[fs])", "a video", "give pictures"),
        (rb"%PDF", "a PDF document", "give another file"),
        (rb"<svg|\s*<\?xml", "an XML or SVG document", "convert it to PNG"),
        (rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a packed archive", "unpack it"),
        (rb"GGUF|GGML|ggml", "a GGUF file", "give the model as .safetensors or .ckpt"),
        (rb"\x89HDF", "a Keras file", "give the model as .safetensors or .ckpt"),
    )
)


def kind_of(head: bytes) -> tuple[str, str] | None:
    """What a file that begins with ``head`` is, and what to do; ``None`` if its kind is not in the table."""
    return next(((what, remedy) for pattern, what, remedy in _KINDS if pattern.match(head)), None)


def opened(path: Path | str, what: str = "file", limit: int | None = None) -> BufferedReader:
    """An ordinary file, open for reading; it never waits for one that is none.

    Args:
        what: the kind of file that is wanted, for the message.
        limit: bytes at most.

    Raises:
        UserError: there is none, it cannot be read, it is a folder, a pipe or a device, or larger.
    """
    path = Path(path)
    try:
        # without O_NONBLOCK, opening a pipe waits for somebody to write into it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, what) from error
    found = os.fstat(descriptor)
    other = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
    large = limit is not None and found.st_size > limit
    if not stat.S_ISREG(found.st_mode) or large:
        os.close(descriptor)
        if large and limit is not None:
            raise UserError(f"{path} is too large for a {what}: it has {found.st_size} bytes, and at most "
                            f"{limit} are read; give another one")  # fmt: skip
        raise UserError(f"{path} is {other}, not a {what}: give a file")
    return os.fdopen(descriptor, "rb")


def unreadable(path: Path | str, error: OSError | ValueError, what: str = "file") -> UserError:
    """The line for a file that the system does not open or read."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"there is no {what} {path}: check the path")
    if number in (errno.EACCES, errno.EPERM):
        return UserError(f"cannot read the {what} {path}: permission denied; allow yourself to read it")
    if number in (errno.EISDIR, errno.ENXIO):
        return UserError(f"{path} is {'a folder' if number == errno.EISDIR else 'a pipe or a device'}, not a "
                         f"{what}: give a file")  # fmt: skip
    reason = os.strerror(number) if number else str(error)
    return UserError(f"cannot read the {what} {path}: {reason}; check the path")


def read_head(path: Path | str, what: str = "file") -> bytes:
    """The first 64 bytes of a file. Errors as :func:`opened`."""
    with opened(path, what) as handle:
        try:
            return handle.read(HEAD)
        except OSError as error:
            raise unreadable(path, error, what) from error


def read_text(path: Path | str, what: str = "file", limit: int = MAX_TEXT) -> str:
    """A text that a person wrote with any editor: UTF-8, UTF-16 with its mark, else Windows-1252.

    Reading one as Windows-1252 is a guess and warned about.

    Raises:
        UserError: as :func:`opened`, or it is no text.
    """
    with opened(path, what, limit) as handle:
        data = handle.read()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        if encoding == "cp1252":
            log.warning("the %s %s is not in UTF-8: read as Windows-1252 (%r); save it as UTF-8 if that is "
                        "wrong", what, path, " ".join(text.split())[:40])  # fmt: skip
        return text
    raise UserError(f"the {what} {path} is no text in UTF-8: save it as UTF-8")


@contextmanager
def native(path: Path, *, rename: bool = False) -> Iterator[str]:
    """The path of a file to read, as libraries below Python take it: in UTF-8.

    A name from an old archive may be no UTF-8. On Linux the open file has another name, which is; a file
    that is mapped stays so afterwards. Elsewhere :class:`UserError` asks for another name.

    Args:
        rename: the other name in any case: this one's ending misleads a library.
    """
    if not rename and printable(path) == str(path):
        yield str(path)
        return
    with opened(path) as handle:
        name = f"/proc/self/fd/{handle.fileno()}"
        if not os.path.exists(name):
            raise UserError(f"{printable(path)} is a name that its reader does not take (no UTF-8, "
                            "or the ending of another kind): rename it")  # fmt: skip
        yield name


def unicode_name(name: str) -> str:
    """A file's name as text. Old archives of Windows hold names in its own letters, not in UTF-8."""
    if printable(name) == name:
        return name
    return os.fsencode(name).decode("cp1252", "replace")


def printable(text: Path | str) -> str:
    """``text`` with an escape such as ``\\udce9`` for each byte of a file name that is no UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode()
