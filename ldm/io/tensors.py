"""Files of tensors whose bytes are a function of what is in them.

The library's writer keeps metadata in a hash table, so that two files of the same content differ in the
order of their headers. Here names are sorted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a ``.safetensors`` file; the caller makes it atomic."""
    save_file(dict(tensors), str(path), dict(metadata) if metadata else None)
    if metadata and len(metadata) > 1:
        _sort_metadata(Path(path))


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
