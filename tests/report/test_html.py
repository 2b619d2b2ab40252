"""What all pages share: values as text, pictures that are embedded."""

from pathlib import Path

from ldm.report.html import flat, picture, show


def test_values_as_text() -> None:
    assert [show(v) for v in (None, True, 0.5, float("nan"), [1, "a"], 12)] == [
        "", "yes", "0.5", "not finite", "1, a", "12"
    ]  # fmt: skip


def test_nested_mappings_become_rows_with_dotted_names() -> None:
    assert flat({"a": {"b": 0.5, "c": None}, "d": "e"}) == [("a.b", "0.5"), ("a.c", ""), ("d", "e")]


def test_a_picture_is_embedded_with_the_size_at_which_it_is_shown(files: list[Path], tmp_path: Path) -> None:
    found = picture(files[0])
    assert (found.name, found.width, found.height) == ("a.png", 192, 192)
    assert found.uri.startswith("data:image/png;base64,")
    reduced = picture(files[0], largest=32)
    assert (reduced.width, reduced.height) == (96, 96)  # 32 pixels, shown three times as large
    assert picture(tmp_path / "none.png").uri == ""
