"""Trackio: settings, pictures by prompt, and tables with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.training.boards.base import About, Board, Picture, Shot


class TrackioBoard(Board):
    """Of ``TrackioLog``."""

    def pictures(self, shots: Sequence[Shot]) -> None:
        import trackio

        for shot in shots:
            self.scalars({f"pictures/{shot.prompt}": trackio.Image(shot.picture, shot.prompt)}, shot.step)

    def words(self, nearest: Mapping[str, Sequence[Sequence[Any]]], step: int) -> None:
        rows = [
            {"learned": name, "word": word, "cosine": cosine}
            for name, words in nearest.items()
            for word, cosine in words
        ]
        self.table("nearest words", rows, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        import trackio

        if not rows:
            return
        columns = list(rows[0])
        data = [
            [trackio.Image(row[c]) if isinstance(row[c], Picture) else row[c] for c in columns]
            for row in rows
        ]
        self.scalars({name: trackio.Table(columns=columns, data=data)}, step)

    def embedding(self, file: Path, about: About, metadata: Mapping[str, Any]) -> None:
        facts = {"base_model": about.base_model, **metadata, "pictures": ", ".join(about.pictures.values())}
        rows = [{"of the embedding": name, "value": str(value)} for name, value in facts.items()]
        self.table("embedding", rows, int(metadata.get("step", 0)))

    def summary(self, values: Mapping[str, Any]) -> None:
        rows = [{"result": name, "value": str(value)} for name, value in values.items()]
        self.table("summary", rows, int(values.get("steps", 0)))

    def close(self, status: str) -> None:
        self.logger.close()
