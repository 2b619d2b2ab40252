"""``report.html`` of an evaluation: notes, cards, tables, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup

from ldm.report.html import picture, show, write_page

SHEET = 8192  # contact sheets are not reduced before this


@dataclass(frozen=True)
class Table:
    """Rows of an evaluation; a column of numbers is set to the right.

    Attributes:
        title, note: what stands above the rows.
        columns: their names.
        rows: a value a column each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class EvaluationReport:
    """What the page of an evaluation shows.

    Attributes:
        title: text.
        summary: the figures, shown as cards.
        notes: paragraphs that say what was measured.
        tables: shown in their order.
        sheets: title -> file of a contact sheet.
        manifest: how the evaluation is made again; nested mappings are shown flat.
        charts: title -> drawing, as :func:`ldm.report.curves.line_chart` returns it.
    """

    title: str
    summary: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    sheets: Mapping[str, Path] = field(default_factory=dict)
    manifest: Mapping[str, object] = field(default_factory=dict)
    charts: Mapping[str, Markup] = field(default_factory=dict)


def write_evaluation_report(report: EvaluationReport, path: Path) -> Path:
    """Write the page of an evaluation atomically; returns ``path``."""
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
    sheets = [(name, picture(file, SHEET)) for name, file in report.sheets.items()]
    return write_page("evaluation", path, report, tables=tables, sheets=sheets)


def _columns(table: Table) -> list[list[object]]:
    return [[row[i] for row in table.rows] for i in range(len(table.columns))]
