"""Reads the file of an offline W&B run: LevelDB's log format around W&B's own protobuf records."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Every ``wandb_internal.Record`` of a ``.wandb`` file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] in (b":W&B", b"")
    at, whole = 7, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block that holds no header is empty
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:
            at += left
            continue
        part = data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        whole = part if kind in (FULL, FIRST) else whole + part
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record


class WandbFile:
    """What an offline run holds.

    Attributes:
        run: its record: project, group, job type, tags.
        config, summary: by name; a nested one by its dotted name.
        history: the logged rows.
        artifacts: their records.
    """

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("*.wandb")
        until = time.monotonic() + 20  # W&B's own process writes the end a moment after ``finish`` returns
        while time.monotonic() < until and not _ended(path):
            time.sleep(0.1)
        self.folder = folder
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= _values(record.run.config.update)
            elif kind == "config":
                self.config |= _values(record.config.update)
            elif kind == "summary":
                self.summary |= _values(record.summary.update)
            elif kind == "history":
                self.history.append(_values(record.history.item))
            elif kind == "artifact":
                self.artifacts.append(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                self.artifacts.append(record.request.log_artifact.artifact)

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of the last table that was logged by this name; a picture is the path of its file."""
        kept = [{c.path: c.local_path for c in a.manifest.contents} for a in self.artifacts]
        files = [own for own in kept if f"{name}.table.json" in own][-1]
        table = json.loads(Path(files[f"{name}.table.json"]).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        for row in rows:
            for key, value in row.items():
                if isinstance(value, dict) and value["_type"] == "image-file":
                    row[key] = Path(files[value["path"]])
        return rows


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _ended(path: Path) -> bool:
    return any(record.WhichOneof("record_type") == "exit" for record in records(path))
