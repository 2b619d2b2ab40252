"""``report.html``: one self-contained page of an inversion or an evaluation.

Pictures are embedded, so that the page can be mailed or moved alone; everything that comes from a
run (names, prompts, hashes) is escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import DictLoader, Environment
from PIL import Image

from ldm.io.atomic import write_text
from ldm.report.curves import line_chart
from ldm.report.pages import PAGES

SHOWN = 192  # small pictures are enlarged towards this many pixels a side, three times at most
LARGEST = 1024  # larger ones are embedded reduced to this, two sides considered
SHEET = 8192  # contact sheets are not reduced before this


@dataclass(frozen=True)
class InversionReport:
    """What the page of one inversion shows.

    Attributes:
        title: text.
        placeholders: the learned words.
        summary: a few settings and results, shown as cards.
        training_images: the concept's pictures.
        samples_by_step: step -> pictures or grids drawn then.
        prompts: prompt -> its final pictures.
        curves: name -> points (step, value).
        nearest_words: placeholder -> for each vector v*_k its (word, cosine, ...) neighbours, nearest first.
        manifest: of the run; nested mappings are shown flat.
        metrics: name -> value, where an evaluation was made.
    """

    title: str
    placeholders: Sequence[str]
    summary: Mapping[str, Any] = field(default_factory=dict)
    training_images: Sequence[Path] = ()
    samples_by_step: Mapping[int, Sequence[Path]] = field(default_factory=dict)
    prompts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    nearest_words: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of an evaluation; a column of numbers is set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class EvaluationReport:
    """What the page of an evaluation shows: ``notes`` (paragraphs), cards, tables, sheets by title."""

    title: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    sheets: Mapping[str, Path] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)


class _Picture(NamedTuple):
    """``uri`` is empty where the file could not be read: a page with a gap beats no page."""

    name: str
    uri: str = ""
    width: int = 0
    height: int = 0


def write_inversion_report(report: InversionReport, path: Path) -> Path:
    """Write the page of an inversion atomically."""
    words = [
        (f"{name}, " * (len(report.nearest_words) > 1) + f"vector {k}",
         [(str(w[0]), f"{float(w[1]):.2f}") for w in row])
        for name, rows in report.nearest_words.items()
        for k, row in enumerate(rows, start=1)
    ]  # fmt: skip
    return _write(
        "inversion",
        path,
        report,
        training=[_picture(p) for p in report.training_images],
        prompts=[(name, [_picture(p) for p in files]) for name, files in report.prompts.items()],
        steps=[
            (step, [_picture(p, LARGEST) for p in files])
            for step, files in sorted(report.samples_by_step.items())
        ],
        curves=[(name, line_chart(name, points)) for name, points in report.curves.items()],
        words=words,
        metrics=_flat(report.metrics),
    )


def write_evaluation_report(report: EvaluationReport, path: Path) -> Path:
    """Write the page of an evaluation atomically."""
    tables = [
        {
            "title": table.title,
            "note": table.note,
            "columns": table.columns,
            "rows": [[show(value) for value in row] for row in table.rows],
            "numeric": [
                bool(column) and all(type(v) in (int, float) for v in column) for column in _columns(table)
            ],
        }
        for table in report.tables
    ]
    sheets = [(name, _picture(file, SHEET)) for name, file in report.sheets.items()]
    return _write("evaluation", path, report, tables=tables, sheets=sheets)


def show(value: Any) -> str:
    """A value as text: four significant digits, lists with commas, nothing for ``None``."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not finite"
    if isinstance(value, list | tuple):
        return ", ".join(show(v) for v in value)
    return str(value)


def _columns(table: Table) -> list[list[Any]]:
    return [[row[i] for row in table.rows] for i in range(len(table.columns))]


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", show(value)))
    return rows


@cache
def _environment() -> Environment:
    return Environment(loader=DictLoader(PAGES), autoescape=True, trim_blocks=True)


def _write(page: str, path: Path, report: InversionReport | EvaluationReport, **parts: Any) -> Path:
    html = (
        _environment()
        .get_template(page)
        .render(
            report=report,
            summary=_flat(report.summary),
            manifest=_flat(report.manifest),
            **parts,
        )
    )
    return write_text(path, html)


def _picture(path: Path, largest: int = LARGEST) -> _Picture:
    """A file as a data URI, with the size at which it is shown."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            data, kind = path.read_bytes(), image.format or ""
            if max(width, height) > largest or kind not in ("PNG", "JPEG", "WEBP", "GIF"):
                image.thumbnail((largest, largest))
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                (width, height), data, kind = image.size, buffer.getvalue(), "PNG"
    except (OSError, ValueError):
        return _Picture(path.name)
    zoom = min(3.0, max(1.0, SHOWN / min(width, height)))
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"
    return _Picture(path.name, uri, round(width * zoom), round(height * zoom))
