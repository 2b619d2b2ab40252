"""Every kind of word: the line that imports its file makes it known to settings and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

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

    def begin(
        self,
        fit: Fit,
        vectors: Tensor,
        *,
        init: Tensor | None = None,
        parts: Mapping[str, Tensor] | None = None,
        vocabulary: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Word:
        """A word that stands at its start, on the device of ``vectors``.

        Args:
            fit: of the model.
            vectors: (K, D), where v* starts, or in the shape that a file of this kind has.
            init: what distance and regulariser measure from, of a shape like ``vectors``; where the word
                starts unless given.
            parts: what the word's file holds beside ``vectors``.
            vocabulary: (V, D) the model's token embeddings, for kinds that measure themselves by them.
            generator: of what a kind starts at random (default: seed 0).

        Raises:
            UserError: the vectors do not fit the model or the kind.
            ValueError: the kind's ``table`` depends on its ``start``.
        """
        word = self.make(fit, vectors.shape[-2]).to(vectors.device)
        if not parts:
            word.draw(generator or torch.Generator().manual_seed(0))
        word.fill(vectors, parts or {}, vocabulary)
        start = word.table() if init is None else word.fitting(init, word.shape)
        table = word.table().detach().clone()
        word.start.copy_(start.detach())
        if not torch.allclose(word.table(), table, rtol=0, atol=0, equal_nan=True):
            raise ValueError(f"table() of kind {word.kind!r} reads self.start, which is copied from table(): "
                             "keep what it needs in a buffer of its own")  # fmt: skip
        return word

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
