"""Who is in a pack, and where each stands, in one file: a pack that was killed goes on bit for bit.

A sum in floating point depends on what is computed beside it. Concepts that save one after the other would go
on from different steps, beside others than before; here all stand at one moment, in their order.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm.errors import UserError
from ldm.inversion.resume import is_whole
from ldm.io.atomic import atomic_write
from ldm.io.checkpoints import read_torch
from ldm.io.claims import sweep

log = logging.getLogger(__name__)

#: in the folder of a list, while it is being learned
FOLDER = "packs"


class Snapshot(NamedTuple):
    """Of a pack: its size, its members in their order and their states, who waits in which order."""

    size: int
    members: list[str]
    waiting: list[str]
    states: dict[str, dict[str, Any]]


class SnapshotFile:
    """Where a pack of these concepts in the folder ``out`` of a list keeps its snapshot."""

    def __init__(self, out: Path, names: Sequence[str]) -> None:
        digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
        self.path = out / FOLDER / f"{digest[:16]}.pt"
        sweep(self.path.parent)

    def write(self, snapshot: Snapshot) -> None:
        """Replace the last one. A failure is a warning: every concept has a checkpoint of its own."""
        try:
            with atomic_write(self.path) as temporary, open(temporary, "wb") as stream:
                torch.save(snapshot._asdict(), stream)
        except UserError as error:
            log.warning("%s", error)

    def read(self) -> Snapshot | None:
        """The last one; None if there is none that is whole."""
        if not self.path.is_file() or not is_whole(self.path):
            return None
        try:
            return Snapshot(**read_torch(self.path))
        except Exception:  # of another version, say
            return None

    def remove(self) -> None:
        """When all are done."""
        self.path.unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:  # others learn in this folder too, or there was none
            pass


def forget_snapshots(out: Path) -> None:
    """One member of the list in ``out`` goes on alone: its packs are no longer as they were."""
    for path in (out / FOLDER).glob("*.pt"):
        path.unlink(missing_ok=True)
