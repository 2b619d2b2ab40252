"""Orderings that an experiment expects, and whether its figures hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ldm.errors import UserError
from ldm.experiments.config import Expectation
from ldm.experiments.rows import Scored, compare, of_figure

Verdict = Literal["held", "not held", "undecided"]


@dataclass(frozen=True)
class Judged:
    """An expectation and what became of it; ``detail`` has the paired differences."""

    expectation: Expectation
    scorer: str
    verdict: Verdict
    detail: str

    @property
    def name(self) -> str:
        """What is expected, in a sentence; empty if the file does not say it."""
        return self.expectation.name

    @property
    def order(self) -> str:
        """``a > b > c``."""
        return " > ".join(self.expectation.order)


def judge(expectations: Sequence[Expectation], figures: Sequence[Scored]) -> list[Judged]:
    """Compare neighbours of every expected order by their paired difference.

    An order is held if the 95 % interval of each neighbours' difference lies above 0, not held if one lies
    below, and undecided otherwise, as it is with a single concept.

    Raises:
        UserError: no scorer gives the metric, or several do and none is named.
    """
    return [_judge(one, figures) for one in expectations]


def _judge(one: Expectation, figures: Sequence[Scored]) -> Judged:
    given = {score.scorer for _, score in figures if score.metric == one.metric}
    if one.scorer is not None and one.scorer not in given or not given:
        metrics = ", ".join(sorted({score.metric for _, score in figures})) or "none yet"
        who = f" by {one.scorer}" if one.scorer else ""
        if figures:
            raise UserError(f"expect: no scorer gave {one.metric!r}{who}; there are {metrics}")
        return Judged(one, one.scorer or "", "undecided", "nothing has been scored")
    if one.scorer is None and len(given) > 1:
        raise UserError(f"expect: {one.metric} is given by {', '.join(sorted(given))}; name one as scorer")
    scorer = one.scorer or next(iter(given))
    chosen = of_figure(figures, one.metric, scorer)
    verdicts: list[Verdict] = []
    details = []
    for above, below in pairwise(one.order):
        found = compare(chosen, above, below)
        if found is None:
            verdicts.append("undecided")
            details.append(f"{above} - {below}: no cells of both")
            continue
        difference, (low, high), n = found
        if n < 2:
            verdicts.append("undecided")
            details.append(f"{above} - {below}: {difference:+.4f} (one concept has no interval)")
            continue
        verdicts.append("held" if low > 0 else "not held" if high < 0 else "undecided")
        details.append(f"{above} - {below}: {difference:+.4f} ({low:+.4f} to {high:+.4f}, {n} concepts)")
    worst: Verdict = (
        "not held" if "not held" in verdicts else "undecided" if "undecided" in verdicts else "held"
    )
    return Judged(one, scorer, worst, "; ".join(details))
