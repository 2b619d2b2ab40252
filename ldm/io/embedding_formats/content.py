"""What an embedding file holds before anybody says what it means: names, tensors, plain values.

Three containers, told apart by their first bytes: safetensors, torch's pickle (zip or old) and
PNG. No pickled code is run: ``torch.load(weights_only=True)`` with ``ParameterDict`` as the one
class let in. Sizes that a file claims are bounded before they are believed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn import ParameterDict

from ldm.errors import UserError
from ldm.io.containers import is_safetensors
from ldm.io.embedding_formats import picture
from ldm.io.embedding_formats.networks import refuse_network
from ldm.io.files import native
from ldm.io.tensors import save_tensors

NOTES = "textual-inversion"  # the "format" of our metadata in a safetensors file
#: A pickled row of a table may drag the whole table along: 49,408 x 1,280 float32 are 253 MB.
MAX_BYTES = 2**29


@dataclass(frozen=True)
class Content:
    """The names and values of one file. notes: the metadata of a safetensors file."""

    container: str  # "safetensors", "pickle" or "picture"
    values: Mapping[str, Any]
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether this program wrote the file."""
        return are_ours(self.notes)


def are_ours(notes: Mapping[str, str]) -> bool:
    """Whether the metadata of a safetensors file is that of this program."""
    return notes.get("format") == NOTES and "embeddings" in notes


def read_content(path: Path, head: bytes) -> Content:
    """What the file at ``path`` that begins with ``head`` holds.

    :class:`UserError` if it is too large, holds weights of a network or nothing named; if it is broken,
    nearly any error.
    """
    if is_safetensors(head):
        return _read_safetensors(path)
    _refuse_large(path)
    if picture.is_picture(head):
        return Content("picture", picture.read(path))
    return _read_pickle(path)


def _refuse_large(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            "it is too large for an embedding: give a file with learned vectors, not a model's checkpoint"
        )


def _read_safetensors(path: Path) -> Content:
    with native(path) as name, safe_open(name, framework="pt") as handle:
        names, notes = list(handle.keys()), dict(handle.metadata() or {})
        if not are_ours(notes):  # in ours every name is a word's
            refuse_network(names)
        _refuse_large(path)
        return Content("safetensors", {name: handle.get_tensor(name) for name in names}, notes)


def _read_pickle(path: Path) -> Content:
    with (
        path.open("rb") as handle,
        warnings.catch_warnings(),
        torch.serialization.safe_globals([ParameterDict]),
    ):
        warnings.simplefilter("ignore")  # about broken files; those are errors
        values = torch.load(handle, map_location="cpu", weights_only=True)  # a path's suffix counts
    if not isinstance(values, Mapping):
        raise UserError("it holds no embedding: give a file with learned vectors")
    named = {str(k): v for k, v in values.items() if isinstance(k, str)}
    inner = named.get("state_dict")
    refuse_network(map(str, inner) if isinstance(inner, Mapping) else named)
    return Content("pickle", named)


def _write_safetensors(content: Content, path: Path) -> None:
    save_tensors(content.values, path, content.notes)


def _write_pickle(content: Content, path: Path) -> None:
    with path.open("wb") as stream:  # to a stream: a path would be stored in the file
        torch.save(dict(content.values), stream)


def _write_picture(content: Content, path: Path) -> None:
    picture.write(content.values, path)


_WRITERS: dict[str, Callable[[Content, Path], None]] = {
    "safetensors": _write_safetensors,
    "pickle": _write_pickle,
    "picture": _write_picture,
}


def write_content(content: Content, path: Path) -> None:
    """Writes ``content`` to ``path`` as its container says; the caller makes it atomic."""
    _WRITERS[content.container](content, path)
