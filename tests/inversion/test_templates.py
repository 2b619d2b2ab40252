"""The paper's caption templates: how many, how they read, and what render refuses."""

from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.inversion.templates import (
    DUAL,
    OBJECT,
    SETS,
    STYLE,
    STYLE_DUAL,
    described,
    read_templates,
    render,
    templates,
)


def test_counts_are_the_official_ones() -> None:
    assert (len(OBJECT), len(set(OBJECT))) == (81, 57)
    assert len(set(OBJECT[:27])) == 27
    assert len(STYLE) == 19 and len(DUAL) == 27


def test_every_medium_has_its_sentences() -> None:
    for line in ("a photo of my {}", "an illustration of my {}", "a depiction of my {}"):
        assert OBJECT.count(line) == 1
    for line in ("a close-up photo of a {}", "a rendition of the {}", "the photo of a {}"):
        assert OBJECT.count(line) == 3
    assert not any("<" in line for lines in SETS.values() for line in lines)


def test_sets_have_one_slot_and_dual_ones_two() -> None:
    for kind in SETS:
        slots = 2 if kind.endswith("dual") else 1
        assert {line.count("{}") for line in templates(kind)} == {slots}
    assert DUAL[0] == "a photo of a {} with {}"
    assert STYLE_DUAL[0] == "a painting in the style of {} with {}"


def test_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="object, style"):
        templates("objects")


def test_render_puts_words_in_whatever_they_contain() -> None:
    assert render("a photo of a {}", "{0} <a b>") == "a photo of a {0} <a b>"
    assert render(DUAL[0], "S*", "S_1") == "a photo of a S* with S_1"


@pytest.mark.parametrize(
    ("template", "image_token"), [("a photo", None), (DUAL[0], None), (OBJECT[0], "S_1")]
)
def test_render_refuses_a_wrong_number_of_slots(template: str, image_token: str | None) -> None:
    with pytest.raises(UserError, match="times"):
        render(template, "S*", image_token)


# ------------------------------------------------------------------------------ one's own
def test_a_file_holds_one_sentence_a_line_with_either_slot(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("\ufeff# for toys\na toy {}\n\n  {}'s portrait \r\na photo of [name]\n", encoding="utf-8")
    own = read_templates(path)
    assert own == ("a toy {}", "{}'s portrait", "a photo of {}") == templates(list(own))
    assert described(own) == described(list(own)) != described(own[:2]) and described("style") == "style"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a photo of a cat\n", "'a photo of a cat' needs {} once"),
        (b"{} and {}\n", "needs {} once"),
        (b"[filewords]\n", "needs {} once"),
        (b"# nothing\n\n", "at least one sentence"),
        (b"\xff\xfe{\x00\x00", "no text in UTF-8"),
        (b"a {}\n" * 2**19, "too large for a template file"),
        (None, "no template set and no file"),
    ],
)
def test_a_file_that_holds_no_templates_is_one_line(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_templates(path)
    assert says in str(raised.value) and "own.txt" in str(raised.value) and "\n" not in str(raised.value)
