"""The page of an inversion: well-formed, self-contained, escaped, and small."""

from dataclasses import replace
from pathlib import Path

import pytest
from pages import Page
from PIL import Image

from ldm.report.inversion import InversionReport, write_inversion_report

pytestmark = pytest.mark.slow


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
