"""What a weight file may claim, checked before the libraries that read it believe it.

Three containers, told apart by their first bytes: safetensors, a zip and an old pickle, both of torch.
Their readers take the number of tensors and the size of their tables from the file, and a small file can
claim enough to keep them busy for minutes. The bounds are far above what any model of this kind has: the
largest, with the state of its optimiser, have 7,000 tensors and a table of 1.5 MB.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from ldm.errors import UserError
from ldm.io.files import kind_of, opened, read_head

#: bytes of a table of contents: the header of safetensors, the directory of a zip, the program of a pickle
MAX_TABLE = 2**23
MAX_TENSORS = 20_000
#: operations of an old pickle's program
_MAX_OPERATIONS = 1_000_000
_ZIP, _PICKLE = b"PK", b"\x80"


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is safetensors: 8 bytes of length, then JSON."""
    return head[8:9] == b"{"


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a zip, as torch writes it."""
    return head.startswith(_ZIP)


def is_weights(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is one of the three containers."""
    return is_safetensors(head) or head.startswith((_ZIP, _PICKLE))


def checked_head(path: Path, what: str = "file") -> bytes:
    """The first bytes of a weight file that claims no more than it may.

    Raises:
        UserError: there is no such file, it is of another kind, which is named, or claims too much.
    """
    head = read_head(path, what)
    if not is_weights(head):
        kind = kind_of(head)
        if kind and kind[0] != "a picture":  # a picture may carry an embedding
            raise UserError(f"{path} is {kind[0]}: {kind[1]}")
        return head
    check = _check_safetensors if is_safetensors(head) else _check_zip if is_zip(head) else _check_old_pickle
    with opened(path, what) as handle:
        try:
            check(handle)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except Exception:  # what is broken is for the reader to say
            pass
    return head


def _refuse(table: str, size: int) -> None:
    if size > MAX_TABLE:
        raise UserError(f"its {table} has {size} bytes, and at most {MAX_TABLE} are read: it is corrupt or "
                        "made to harm; fetch it again")  # fmt: skip


def _refuse_many(tensors: int) -> None:
    if tensors > MAX_TENSORS:
        raise UserError(f"it has {tensors} tensors, and at most {MAX_TENSORS} are read: it is no model of a "
                        "kind that is known here")  # fmt: skip


def _check_safetensors(handle: BinaryIO) -> None:
    (size,) = struct.unpack("<Q", handle.read(8))
    _refuse("header", size)
    _refuse_many(handle.read(size).count(b'"data_offsets"'))


def _check_zip(handle: BinaryIO) -> None:
    _refuse("directory", _directory_size(handle))
    with zipfile.ZipFile(handle) as archive:
        parts = archive.infolist()
        if sum(part.file_size for part in parts) > handle.seek(0, 2):  # torch stores them as they are
            raise UserError("it is a compressed archive, not a file that torch wrote: unpack it")
        _refuse_many(len(parts))
        for part in parts:
            if part.filename.endswith("data.pkl"):
                _refuse("program", part.file_size)
                _refuse_buffers(archive.read(part))


def _directory_size(handle: BinaryIO) -> int:
    """Bytes of a zip's directory, as its last record says (APPNOTE 4.3.14 and 4.3.16)."""
    handle.seek(max(0, handle.seek(0, 2) - 2**16 - 256))
    tail = handle.read()
    end, end64 = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    if end < 0:
        raise UserError("it is a zip without a directory: it is cut short; fetch it again")
    (size,) = struct.unpack_from("<I", tail, end + 12)
    if size == 2**32 - 1 and end64 >= 0:
        (size,) = struct.unpack_from("<Q", tail, end64 + 40)
    return int(size)


def _check_old_pickle(handle: BinaryIO) -> None:
    """Five pickles, and the tensors' bytes after them: magic number, version, system, content, keys."""
    data = handle.read(MAX_TABLE)
    stream, operations = io.BytesIO(data), 0
    try:
        for _ in range(5):
            for _operation in pickletools.genops(stream):
                operations += 1
                if operations > _MAX_OPERATIONS:
                    raise UserError(f"its program has over {_MAX_OPERATIONS} operations, no more are read: "
                                    "it is corrupt or made to harm; fetch it again")  # fmt: skip
    except ValueError:  # broken, or longer than what was read
        _refuse("program", handle.seek(0, 2) if handle.read(1) else 0)
        raise
    finally:
        _refuse_buffers(data[: stream.tell()])


def _refuse_buffers(program: bytes) -> None:
    """torch lets a pickle make a ``bytearray`` of any length: gigabytes from a few bytes."""
    if b"bytearray" in program:
        raise UserError("its program makes buffers, which no weights need: it is made to harm")
