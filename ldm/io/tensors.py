"""Files of tensors whose bytes are a function of what is in them.

The library's writer keeps metadata in a hash table, so that two files of the same content differ in the
order of their headers. Here names are sorted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ldm.io.atomic import private_folder


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a ``.safetensors`` file; the caller makes it atomic.

    The library writes to a name of its own choice, and renames that. It does so in a folder with a name that
    tells whose it is, so that what a killed process leaves is found and removed.
    """
    path = Path(path)
    with private_folder(path) as folder:
        written = folder / "tensors"
        save_file(dict(tensors), str(written), dict(metadata) if metadata else None)
        os.replace(written, path)
    if metadata and len(metadata) > 1:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in a header, which is 8 bytes of its length and JSON that spaces may follow."""
    with open(path, "rb+") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "a sorted header is as long as it was"
        handle.seek(8)
        handle.write(text.ljust(length))
