"""``report.html`` of an experiment: one page with the figure, the orders, the tables and the pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment
from markupsafe import Markup
from PIL import Image

from ldm.experiments.expect import judge
from ldm.experiments.figure import Interval, Point, scatter
from ldm.experiments.plan import Cell, Plan
from ldm.experiments.rows import scored, setup_rows
from ldm.experiments.runner import Standing, standing
from ldm.experiments.scores import BORDER
from ldm.io.atomic import write_text
from ldm.io.runs import now, versions
from ldm.io.secrets import redacted
from ldm.report.pages import PAGES

PAGE = "report.html"
#: (text, image): the figures that make the two axes, of the paper, of DreamBench and of the emoji bench
AXES = (
    ("editability (paper)", "reconstruction (paper)"),
    ("CLIP-T", "CLIP-I"),
    ("backgrounds obeyed", "retrieval (first)"),
)
THUMB, SHOWN = 96, 8  # pixels a side, and samples of a concept

TEMPLATE = """{% extends "base" %}
{% block lead %}<p>{{ lead }}</p>{% endblock %}
{% block body %}
{% for name, svg in figures %}<section><h2>{{ name }}</h2>
<p class="soft">A point is a setup, the mean over concepts; its lines are 95 % intervals by bootstrap over
concepts. A name leads to the setup's pictures.</p>{{ svg }}</section>{% endfor %}
{% if verdicts %}<section><h2>Expected orders</h2>
<p class="soft">Held: the 95 % interval of every neighbours' paired difference lies above 0. Not held: one
lies below. Undecided: neither.</p>
<div class="scroll"><table><tr><th>verdict</th><th>figure</th><th>order</th><th>paired differences</th></tr>
{% for one in verdicts %}<tr><td><b>{{ one.verdict }}</b></td>
<td>{% if one.name %}{{ one.name }}<br>{% endif %}
{{ one.expectation.metric }}<br><span class="soft">{{ one.scorer }}</span></td><td>{{ one.order }}</td>
<td>{{ one.detail }}</td></tr>{% endfor %}</table></div></section>{% endif %}
{% for scorer, rows in tables %}{% set seen = namespace(figure="") %}<section><h2>{{ scorer }}</h2>
<div class="scroll"><table style="white-space: nowrap"><tr><th>figure</th><th>setup</th>
<th class="number">mean</th><th>95 %</th>
<th class="number">to {{ baseline }}</th><th>95 %</th><th class="number">ceiling</th>
<th class="number">concepts</th><th class="number">pictures</th></tr>
{% for row in rows %}<tr><td>{% if row.metric != seen.figure %}{{ row.metric }}{% if row.references %}
<br><span class="soft">against {{ row.references }}</span>{% endif %}{% endif %}
{%- set seen.figure = row.metric %}</td><td>{{ row.setup }}</td>
<td class="number">{{ "%.4f"|format(row.figure) }}</td>
<td>{% if row.low is not none %}{{ "%.4f"|format(row.low) }} to {{ "%.4f"|format(row.high) }}{% endif %}</td>
<td class="number">{% if row.difference is not none %}{{ "%+.4f"|format(row.difference) }}{% endif %}</td>
<td>{% if row.difference_low is not none %}{{ "%+.4f"|format(row.difference_low) }} to
 {{ "%+.4f"|format(row.difference_high) }}{% endif %}</td>
<td class="number">{% if row.ceiling is not none %}{{ "%.4f"|format(row.ceiling) }}{% endif %}</td>
<td class="number">{{ row.concepts }}</td><td class="number">{{ row.n }}</td></tr>{% endfor %}</table></div>
<details><summary>how it measures</summary>{{ pairs(identity[scorer]) }}</details></section>{% endfor %}
{% if budget %}<section><h2>What it took</h2><p class="soft">Means over the cells of a setup; memory
is the most that the process had, with all cells that shared its pack.</p>
<div class="scroll"><table style="white-space: nowrap"><tr><th>setup</th><th class="number">steps</th>
<th class="number">pictures seen</th>
<th class="number">seconds</th><th class="number">peak memory, MB</th><th>machine</th><th>threads</th>
<th>commit</th></tr>{% for row in budget %}<tr><td>{{ row.setup }}</td>
<td class="number">{{ "%.0f"|format(row.steps) }}</td>
<td class="number">{{ "%.0f"|format(row.pictures_seen) }}</td>
<td class="number">{{ "%.1f"|format(row.seconds) }}</td><td class="number">{{ row.peak_memory_mb }}</td>
<td>{{ row.machine }}</td><td>{{ row.threads }}</td>
<td><code>{{ row.commit if " " in row.commit else row.commit[:12] }}</code></td></tr>
{% endfor %}</table></div></section>{% endif %}
{% if unfinished %}<section><h2>Not finished</h2>
<div class="scroll"><table>{% for one in unfinished %}<tr><td>{{ one.state }}</td>
<td>{{ one.cell.title }}</td>
<td>{{ one.error }}</td></tr>{% endfor %}</table></div></section>{% endif %}
{% for setup in setups %}<section id="setup-{{ loop.index0 }}"><h2>{{ setup.name }}</h2>
<p class="soft">{{ setup.note }}</p>
{% for name, uri, width, height in setup.strips %}<h3>{{ name }}</h3>
<div class="scroll"><img src="{{ uri }}" width="{{ width }}" height="{{ height }}" alt="{{ name }}"
 loading="lazy"></div>{% endfor %}</section>{% endfor %}
{% endblock %}
"""


def write_page(plan: Plan) -> Path:
    """Write ``report.html`` of what there is by now.

    Raises:
        UserError: figures that would stand in one row were measured differently.
    """
    figures = scored(plan)
    rows = setup_rows(plan, figures)
    found = [standing(plan, cell) for cell in plan.cells]
    environment = Environment(
        loader=DictLoader({**PAGES, "experiment": TEMPLATE}), autoescape=True, trim_blocks=False
    )
    scorers = list(dict.fromkeys(row["scorer"] for row in rows))
    finished = sum(one.state == "finished" for one in found)
    title = plan.config.title or f"Experiment {plan.out.name}"
    text = environment.get_template("experiment").render(
        report={"title": title},
        lead=f"{len(plan.concepts)} concepts, {len(plan.config.grid.setups)} setups and "
        f"{len(plan.config.grid.seeds)} seeds on the model {plan.model}; {finished} of {len(found)} cells "
        "are finished.",
        summary=[],
        figures=planes(plan, rows),
        verdicts=judge(plan.config.expect, figures),
        tables=[(name, [row for row in rows if row["scorer"] == name]) for name in scorers],
        identity={name: _identity(rows, name) for name in scorers},
        baseline=plan.config.compared_with,
        budget=_budget(rows),
        unfinished=[one for one in found if one.state != "finished"],
        setups=[_setup(plan, name, found) for name in plan.config.grid.setups],
        manifest=_manifest(plan),
    )
    return write_text(plan.out / PAGE, text)


def planes(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """The plane of likeness against what prompts ask for, as figure 10 of the paper draws it, by each scorer.

    Args:
        rows: of ``setup_rows``.

    Returns:
        Titles and their SVG, with a point for each setup that has both figures.
    """
    found = []
    setups = list(plan.config.grid.setups)
    for scorer in dict.fromkeys(row["scorer"] for row in rows):
        for text, image in AXES:
            points = []
            for number, setup in enumerate(setups):
                judge_of_text = BORDER if text == "backgrounds obeyed" else scorer
                x = _interval(rows, judge_of_text, setup, text)
                y = _interval(rows, scorer, setup, image)
                if x is not None and y is not None:
                    points.append(Point(setup, x, y, f"#setup-{number}"))
            if points:
                title = f"{image[0].upper()}{image[1:]} against {text}, by {scorer}"
                found.append((title, scatter(title, points, text, image)))
    return found


def _interval(rows: Sequence[Mapping[str, Any]], scorer: str, setup: str, metric: str) -> Interval | None:
    for row in rows:
        if (row["scorer"], row["setup"], row["metric"]) == (scorer, setup, metric):
            low, high = (row["figure"] if row[end] is None else row[end] for end in ("low", "high"))
            return Interval(row["figure"], low, high)
    return None


def _identity(rows: Sequence[Mapping[str, Any]], scorer: str) -> list[tuple[str, str]]:
    first = next(row for row in rows if row["scorer"] == scorer)
    return [(name, first[name]) for name in ("architecture", "weights", "preprocessing")]


def _budget(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row a setup: what its cells took is in each of its rows."""
    return list({row["setup"]: row for row in rows}.values())


def _manifest(plan: Plan) -> list[tuple[str, str]]:
    kept = {
        "written": now(),
        "base model": ", ".join(plan.base_model),
        "sampling": f"{plan.sampling.sampler}, {plan.sampling.steps} steps, guidance {plan.sampling.scale:g}",
        **{f"version of {name}": version for name, version in versions().items()},
    }
    return [(name, redacted(str(value))) for name, value in kept.items()]


# ------------------------------------------------------------------ pictures
def _setup(plan: Plan, name: str, found: Sequence[Standing]) -> dict[str, Any]:
    strips, seen = [], set()
    for one in found:
        cell = one.cell
        if cell.setup == name and one.state == "finished" and cell.concept not in seen:
            seen.add(cell.concept)
            strips.append((cell.concept, *_strip(plan, cell)))
    shown = [shot.prompt.replace("{}", "…") for shot in _shown(plan, found, name)]
    note = f"References on the left, then: {'; '.join(shown)}." if strips else "Nothing has been drawn yet."
    return {"name": name, "note": note, "strips": strips}


def _shown(plan: Plan, found: Sequence[Standing], setup: str) -> list[Any]:
    cell = next((one.cell for one in found if one.cell.setup == setup and one.state == "finished"), None)
    return [] if cell is None else [shot for shot in plan.album(cell).shots if shot.sample == 0][:SHOWN]


def _strip(plan: Plan, cell: Cell) -> tuple[str, int, int]:
    """References and samples of a cell as one small picture: its data URI and size in pixels."""
    album = plan.album(cell)
    samples = [album.folder / shot.name for shot in album.shots if shot.sample == 0][:SHOWN]
    references = list(plan.concepts[cell.concept].references[:3])
    gap = 16
    width = (len(references) + len(samples)) * (THUMB + 2) + gap
    sheet = Image.new("RGB", (width, THUMB), "white")
    for i, path in enumerate([*references, *samples]):
        left = i * (THUMB + 2) + (gap if i >= len(references) else 0)
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
        except OSError:  # it was moved since
            continue
        scale = THUMB / max(small.size)
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        small = small.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (THUMB - size[0]) // 2, (THUMB - size[1]) // 2))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=88)
    uri = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
    return uri, width, THUMB
