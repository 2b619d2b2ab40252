"""Report pages: well-formed, self-contained, escaped, and small."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from ldm.report.curves import line_chart, ticks
from ldm.report.report import (
    EvaluationReport,
    InversionReport,
    Table,
    show,
    write_evaluation_report,
    write_inversion_report,
)

pytestmark = pytest.mark.slow

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks the nesting of tags and collects text, pictures and addresses."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.feed(html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for path, colour in zip(paths, ("red", "green", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(path)
    return paths


@pytest.fixture
def report(files: list[Path]) -> InversionReport:
    return InversionReport(
        title="Textual Inversion of <cat-toy>",
        placeholders=["<cat-toy>"],
        summary={"pictures": 3, "seconds": 12.3456, "init": None},
        training_images=files,
        samples_by_step={100: files[:1], 0: files[1:2]},
        prompts={"a photo of <cat-toy> & <script>alert(1)</script>": files[:2]},
        curves={"loss": [(0.0, 1.0), (25.0, 0.5)], "norm of v*": []},
        nearest_words={"<cat-toy>": [[("cat", 0.91, 0.4), ("<b>", 0.5, 1.0)]]},
        manifest={"versions": {"torch": "2.15.0"}, "commands": ["ldm invert --name '<cat-toy>'"]},
        metrics={"reconstruction": {"mean_of_cosines": 0.8123456}},
    )


def written(report: InversionReport, tmp_path: Path) -> tuple[str, Page]:
    html = write_inversion_report(report, tmp_path / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_inversion_page_holds_everything_and_nothing_from_outside(
    report: InversionReport, tmp_path: Path
) -> None:
    html, page = written(report, tmp_path)
    assert len(page.images) == 3 + 2 + 2
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in html and "script" not in page.tags and "link" not in page.tags
    assert page.tags.count("polyline") == 1 and "no values" in page.text
    for text in ("<cat-toy>", "12.35", "cat", "0.91", "2.15.0", "0.8123", "step 100"):
        assert text in page.text, text


def test_vectors_are_named_by_their_word_where_there_are_several(
    report: InversionReport, tmp_path: Path
) -> None:
    _, page = written(report, tmp_path)
    assert "The word\n<cat-toy>, learned from" in page.text and "\nvector 1" in page.text
    rows = [[("cat", 0.91, 0.4)], [("dog", 0.5, 1.0)]]
    both = replace(report, placeholders=["<a>", "<b>"], nearest_words={"<a>": rows, "<b>": rows[1:]})
    _, page = written(both, tmp_path)
    assert "The words\n<a> and <b>, learned from" in page.text
    for vector in ("<a>, vector 1", "<a>, vector 2", "<b>, vector 1"):
        assert vector in page.text


def test_names_and_prompts_are_escaped(report: InversionReport, tmp_path: Path) -> None:
    html, page = written(report, tmp_path)
    assert "<script" not in html and "<cat-toy>" not in html and "<b>" not in html
    assert "<script>alert(1)</script>" in page.text


def test_steps_come_in_order_and_small_pictures_are_enlarged(report: InversionReport, tmp_path: Path) -> None:
    html, page = written(report, tmp_path)
    assert page.text.index("step 0") < page.text.index("step 100")
    assert {image["width"] for image in page.images} == {"192"}


def test_a_missing_or_broken_picture_leaves_a_gap(files: list[Path], tmp_path: Path) -> None:
    files[0].unlink()
    files[1].write_bytes(b"no picture")
    html, page = written(InversionReport("t", "w", training_images=files), tmp_path)
    assert len(page.images) == 1 and "a.png is missing" in page.text


def test_photographs_are_embedded_reduced(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((2400, 1200), 90).convert("RGB").save(path)
    html, page = written(InversionReport("t", "w", training_images=[path]), tmp_path)
    assert page.images[0]["width"] == "1024" and page.images[0]["height"] == "512"


def test_an_empty_report_is_a_page(tmp_path: Path) -> None:
    html, page = written(InversionReport("t", "w"), tmp_path)
    assert page.tags.count("section") == 2  # training pictures and prompts, which say so


def test_evaluation_page_has_tables_notes_and_sheets(files: list[Path], tmp_path: Path) -> None:
    table = Table("Concepts", ("concept", "n", "ok"), [["a <b>", 3, True], ["c", 0.123456, False]])
    report = EvaluationReport("t", {"share": "90 %"}, ["A note."], [table], {"Sheet": files[0]}, {"seed": 1})
    html = write_evaluation_report(report, tmp_path / "e.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("td") == 6 + 2 and html.count('class="number"') == 3
    for text in ("A note.", "a <b>", "0.1235", "yes", "Sheet", "90 %"):
        assert text in page.text, text


def test_values_as_text() -> None:
    assert [show(v) for v in (None, True, 0.5, float("nan"), [1, "a"], 12)] == [
        "", "yes", "0.5", "not finite", "1, a", "12"
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0, 400), (0.93, 1.07), (-1e-6, 1e-6), (1e5, 9e5)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    slack = 1e-9 * (high - low)
    assert all(low - slack <= t <= high + slack for t in found)


def test_charts_survive_gaps_constants_and_single_values() -> None:
    nan = float("nan")
    gap = line_chart("a", [(0, 1), (1, nan), (2, 3), (3, 4)])
    assert gap.count("<polyline") == 2 and gap.count("<circle") == 2 and "nan" not in gap
    assert "nan" not in line_chart("b", [(0, 5.0), (1, 5.0)])
    assert line_chart("c", [(7, 2.0)]).count("<circle") >= 1
    assert "&lt;x&gt;" in line_chart("<x>", [])
