"""What a run tells its loggers, and what a logger of which nothing else is known makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image as Picture
from pytorch_lightning.loggers import Logger


@dataclass(frozen=True)
class About:
    """What a run is; all of it is known before the first step.

    Attributes:
        config: The resolved settings, nested.
        base_model: Fingerprint (hex) of the frozen model.
        model: Name or path of the frozen model.
        pictures: File name -> sha256 (hex) of each picture.
        machine: Processor or GPU.
        versions: Package -> version.
    """

    config: Mapping[str, Any]
    base_model: str
    model: str = ""
    pictures: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def flat(self) -> dict[str, Any]:
        """Every setting and fact by its dotted name; the value is a number, a truth value or text."""
        facts = {"base_model": self.base_model, "machine": self.machine, "versions": self.versions}
        names = {f"pictures.{name}": digest for name, digest in self.pictures.items()}
        return flat({**self.config, **facts}) | names


@dataclass(frozen=True)
class Shot:
    """Pictures of one prompt.

    Attributes:
        prompt: As it was drawn.
        seed: Of the noise.
        step: Optimiser steps that the word had learned for.
        picture: What was drawn.
        scores: Figure by its name, where the pictures have been scored.
    """

    prompt: str
    seed: int
    step: int
    picture: Picture
    scores: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As a row of a table, without the picture."""
        return {"prompt": self.prompt, "seed": self.seed, "step": self.step, **self.scores}


class Board:
    """Scalars and settings in Lightning's own words, which every ``Logger`` understands.

    A board has no state of its own, so it can be made again for the same logger at any time.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    def begin(self, about: About) -> None:
        """Say what the run is; a run that goes on says it again."""
        self.logger.log_hyperparams(about.flat)

    def scalars(self, values: Mapping[str, Any], step: int) -> None:
        """Log numbers of ``step``."""
        self.logger.log_metrics(values, step=step)

    def pictures(self, shots: Sequence[Shot]) -> None:
        """Show the pictures of each prompt at their step."""

    def words(self, nearest: Mapping[str, Sequence[Sequence[Any]]], step: int) -> None:
        """Show for each learned word the words nearest to it, with their cosines, as pairs."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show rows that have the same columns; a value may be a picture."""

    def embedding(self, file: Path, about: About, metadata: Mapping[str, Any]) -> None:
        """Keep the learned words, with the base model and the pictures that they come from."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Say what came of the run in a few values."""

    def close(self, status: str) -> None:
        """Write what is held back and end the run; ``status`` is ``success`` or ``failed``."""
        self.logger.finalize(status)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots; what is no number, truth value or text becomes text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, bool | int | float | str) else text(value)
    return found


def text(value: Any) -> str:
    """A value of a table or a config as text; lists without brackets."""
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None or value == {} else str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows that have the same columns as a Markdown table, without the columns that are pictures."""
    if not rows:
        return ""
    head = [name for name, value in rows[0].items() if not isinstance(value, Picture)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(text(row.get(name))) for name in head) + " |")
    return "\n".join(lines)


def _cell(words: str) -> str:
    """Text that Markdown shows as it is."""
    return " ".join(words.translate({ord(mark): f"&#{ord(mark)};" for mark in "&\\`*_{}[]<>#|"}).split())
