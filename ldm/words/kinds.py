"""Every kind of word: the line that imports its file makes it known to settings and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from ldm.config import resolve
from ldm.errors import UserError
from ldm.words import (  # noqa: F401  a kind a line
    directional,
    per_layer,
    per_stage,
    plain,
    space_time,
)
from ldm.words.kind import KINDS, Fit, Word


class Choice(NamedTuple):
    """A kind of word and its settings, resolved."""

    kind: str
    settings: Any

    def make(self, fit: Fit, count: int) -> Word:
        """A word of ``count`` vectors whose parameters have no start yet."""
        return KINDS[self.kind](fit, count, self.settings)

    def plain(self) -> dict[str, Any]:
        """As ``word:`` in a YAML file holds it, every setting written out."""
        return {"kind": self.kind, **asdict(self.settings)}


def choose(word: Mapping[str, Any] | str) -> Choice:
    """What ``word: {kind: per_layer, shared_steps: 100}`` says; a name alone is a kind by its defaults.

    Raises:
        UserError: there is no such kind, or it has no such setting.
    """
    given = {"kind": word} if isinstance(word, str) else dict(word)
    kind = given.pop("kind", "plain")
    if kind not in KINDS:
        raise UserError(f"there is no kind of word {kind!r}; choose one of {', '.join(sorted(KINDS))}")
    settings = KINDS[kind].Settings
    if given and not fields(settings):
        raise UserError(f"a word of kind {kind} has no setting {next(iter(given))!r}: leave it out")
    return Choice(kind, resolve(settings, given, "word."))
