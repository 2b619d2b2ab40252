"""The page of an evaluation."""

from pathlib import Path

from pages import Page

from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report


def test_evaluation_page_has_tables_notes_and_sheets(files: list[Path], tmp_path: Path) -> None:
    table = Table("Concepts", ("concept", "n", "ok"), [["a <b>", 3, True], ["c", 0.123456, False]])
    report = EvaluationReport("t", {"share": "90 %"}, ["A note."], [table], {"Sheet": files[0]}, {"seed": 1})
    html = write_evaluation_report(report, tmp_path / "e.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("td") == 6 + 2 and html.count('class="number"') == 3
    for text in ("A note.", "a <b>", "0.1235", "yes", "Sheet", "90 %"):
        assert text in page.text, text
