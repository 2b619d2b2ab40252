"""What a figure was measured with: two figures may be compared only if this is the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ldm.errors import UserError

#: Averaging of the paper's text: the features of each set are averaged first.
COSINE_OF_MEANS = "cosine of means"
#: Averaging of the official evaluator's code: every picture with every other.
MEAN_OF_COSINES = "mean of cosines"
#: Reference pictures that the word was not learned from, and those that it was.
HELD_OUT, TRAINING = "held out", "training pictures"


@dataclass(frozen=True)
class Identity:
    """A scorer, down to what changes its figures.

    Attributes:
        architecture: the library, its name of the network, and what the name leaves open.
        weights: sha256 hex of the weights as they are loaded: names, shapes and float32 values. One set of
            weights has one hash, whatever kind of file it came from.
        preprocessing: what happens to a picture before the network sees it.
        text: how a text is read, and which text it is; empty where no text is read.
        averaging: how the cosines of several pictures become one figure; empty for bare features.
    """

    architecture: str
    weights: str
    preprocessing: str
    text: str = ""
    averaging: str = ""

    def measuring(self, *, averaging: str, text: str = "", reads_text: bool = False) -> Identity:
        """The identity of a figure made of this scorer's features.

        Args:
            averaging: how the cosines become a figure.
            text: which text pictures are compared with, such as "the prompt without the placeholder".
            reads_text: whether texts are compared at all; otherwise how they are read is left out.
        """
        read = "; ".join(part for part in (text, self.text) if part) if reads_text else ""
        return replace(self, text=read, averaging=averaging)

    def as_dict(self) -> dict[str, str]:
        """For a row or a JSON file; :meth:`from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, str]) -> Identity:
        """What :meth:`as_dict` gave.

        Raises:
            UserError: a part is missing.
        """
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise UserError(f"a row's scorer identity has no {missing[0]}: score its pictures again")
        return cls(**{name: str(values[name]) for name in names})


@dataclass(frozen=True)
class Score:
    """One figure, with what it takes to compare it.

    Attributes:
        scorer: its name, such as ``clip:ViT-B-32/openai``.
        metric: such as ``CLIP-I``.
        figure: the figure itself.
        ceiling: the same measure of reference pictures against each other; ``None`` where there is none.
        n: pictures that were scored.
        references: the pictures compared with, "held out" or "training pictures"; empty if none were.
        identity: of the scorer, with text and averaging.
    """

    scorer: str
    metric: str
    figure: float
    ceiling: float | None
    n: int
    references: str
    identity: Identity

    def as_row(self) -> dict[str, Any]:
        """Flat, for a table: ``identity`` becomes a column for each of its parts."""
        row = asdict(self)
        return {**{k: v for k, v in row.items() if k != "identity"}, **self.identity.as_dict()}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Score:
        """What :meth:`as_row` gave, also as text from a CSV file."""
        ceiling = row["ceiling"]
        return cls(
            row["scorer"],
            row["metric"],
            float(row["figure"]),
            None if ceiling in (None, "") else float(ceiling),
            int(row["n"]),
            row["references"],
            Identity.from_dict(row),
        )


def require_same(scores: Iterable[Score]) -> Identity:
    """The one identity of all ``scores``.

    Raises:
        UserError: they measure different things, or with different scorers; the line says which part
            differs.
    """
    rows = list(scores)
    if not rows:
        raise UserError("there is nothing to compare: no score was given")
    first = rows[0]
    for other in rows[1:]:
        for name in ("metric", "references"):
            _refuse(name, getattr(first, name), getattr(other, name))
        for field in fields(Identity):
            _refuse(field.name, getattr(first.identity, field.name), getattr(other.identity, field.name))
    return first.identity


def _refuse(part: str, one: str, other: str) -> None:
    if one != other:
        short = 16 if part == "weights" else 60
        raise UserError(
            f"these scores cannot be compared, their {part} differs: {_cut(one, short)} and "
            f"{_cut(other, short)}; score the pictures of both with one scorer"
        )


def _cut(text: str, length: int) -> str:
    text = text or "none"
    return text if len(text) <= length else f"{text[:length]}..."
