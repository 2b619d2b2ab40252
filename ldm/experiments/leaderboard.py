"""The bench's leaderboard: a row for each method, as Markdown that says how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.experiments.bench import BASELINE, EDITABILITY, RECONSTRUCTION, BenchConfig, Method
from ldm.experiments.plan import Plan
from ldm.experiments.rows import scored, setup_rows
from ldm.experiments.scores import BORDER

#: Column -> metric and scorer.
FIGURES = {
    "likeness": (RECONSTRUCTION, "emoji-clip"),
    "editability": (EDITABILITY, "emoji-clip"),
    "retrieval": ("retrieval (first)", "emoji-clip"),
    "backgrounds": ("backgrounds obeyed", BORDER),
}


@dataclass(frozen=True)
class Standing:
    """Where a method stands.

    Attributes:
        method: its name.
        product: likeness times editability, by which methods are ranked.
        rows: column of :data:`FIGURES` -> the row of the experiment's table.
    """

    method: str
    product: float
    rows: Mapping[str, Mapping[str, Any]]


def standings(plan: Plan) -> list[Standing]:
    """All methods that have been measured, the best one first."""
    table = setup_rows(plan, scored(plan))
    found = []
    for setup in plan.config.grid.setups:
        own = {
            column: row
            for column, (metric, scorer) in FIGURES.items()
            for row in table
            if (row["setup"], row["metric"], row["scorer"]) == (setup, metric, scorer)
        }
        if {"likeness", "editability"} <= set(own):
            product = own["likeness"]["figure"] * own["editability"]["figure"]
            found.append(Standing(setup, product, own))
    return sorted(found, key=lambda one: -one.product)


def markdown(plan: Plan, methods: Sequence[Method], bench: BenchConfig, command: str) -> str:
    """The leaderboard as a Markdown page."""
    found = standings(plan)
    steps = "takes its own number of steps"
    if bench.pictures:
        steps = f"sees at most {bench.pictures} pictures while it learns a word"
    lines = [
        "# The bench",
        "",
        f"Methods of learning a word, on {bench.concepts} things that the shipped model never saw: five "
        "pictures of each are learned from, five others are the references; seeds "
        f"{', '.join(map(str, bench.seeds))}. A method {steps}. Methods are ranked by likeness times "
        "editability.",
        "",
        "Each figure has its 95 % interval by bootstrap over concepts, and below it the paired difference to "
        f"`{BASELINE}` (same concept, seed and noise) with its interval. Likeness and editability are the "
        "paper's, by the scorer `emoji-clip`, whose figures compare with nothing but each other. Retrieval "
        "is the share of pictures that are nearest to their own concept. Backgrounds are measured on pixels.",
        "",
        f"| rank | method | {' | '.join(FIGURES)} | steps | pictures seen | seconds a word |",
        f"|---|---|{'---|' * len(FIGURES)}---|---|---|",
    ]
    for rank, one in enumerate(found, start=1):
        first = one.rows["likeness"]
        cells = [_cell(one.rows.get(column)) for column in FIGURES]
        budget = f"{first['steps']:.0f} | {first['pictures_seen']:.0f} | {first['seconds']:.1f}"
        lines.append(f"| {rank} | {one.method} | {' | '.join(cells)} | {budget} |")
    lines += ["", "Methods:", "", *(f"- `{m.name}`: {m.about or 'no description'}" for m in methods)]
    if found:
        first = found[0].rows["likeness"]
        lines += [
            "",
            f"Made by `{command}`; machine: {first['machine']}, {first['threads']} threads; "
            f"commit {first['commit']}; base model {', '.join(plan.base_model)}; {plan.sampling.sampler}, "
            f"{plan.sampling.steps} steps, guidance {plan.sampling.scale:g}; {bench.samples} pictures of "
            "each prompt.",
        ]
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['figure']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    if row["difference"] is None:
        return text
    low, high = row["difference_low"], row["difference_high"]
    return f"{text}<br>{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
