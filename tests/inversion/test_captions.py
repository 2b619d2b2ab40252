"""Prompts name the concept, always; caption files are checked before anything is trained."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.inversion.captions import PromptSource, contains_placeholder, has_captions, read_captions
from ldm.inversion.templates import DUAL, OBJECT, STYLE
from ldm.io.pictures import list_pictures
from ldm.pretraining.sources import FolderPictures
from ldm.seeding import generator


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write(folder: Path, content: str | bytes) -> list[Path]:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "a.txt").write_bytes(data)
    return [folder / "a.jpg"]


# -------------------------------------------------------------------------- caption files
def test_captions_name_the_concept_by_the_placeholder_or_a_slot(tmp_path):
    paths = write(tmp_path, "\ufeffa  <cat toy> on grass\n\n{} in\tthe rain \n")
    assert read_captions(paths, "<cat toy>") == [("a <cat toy> on grass", "<cat toy> in the rain")]


def test_of_several_words_every_caption_names_one(tmp_path):
    paths = write(tmp_path, "<a> beside <b>\n{} again\nonly <b>")
    assert read_captions(paths, "<a> on <b>", ["<a>", "<b>"]) == [
        ("<a> beside <b>", "<a> on <b> again", "only <b>")
    ]
    with pytest.raises(UserError, match="write <a> or <c> or {} into it"):
        read_captions(paths, "<a>", ["<a>", "<c>"])


@pytest.mark.parametrize("content", ["a dog", "a category", "", " \n ", b"\xff\xfe\x00x", "a cat\na dog"])
def test_a_caption_that_cannot_train_the_word_is_refused_by_file(tmp_path, content):
    with pytest.raises(UserError, match="a.txt") as caught:
        read_captions(write(tmp_path, content), "cat")
    assert "\n" not in str(caught.value)


def test_a_missing_caption_is_named(tmp_path):
    assert has_captions(write(tmp_path, "x {}")) and not has_captions([tmp_path / "b.jpg"])
    with pytest.raises(UserError, match="b.txt"):
        read_captions([tmp_path / "a.jpg", tmp_path / "b.jpg"], "*")


@pytest.mark.parametrize(
    "text, placeholder, found",
    [
        ("a photo of *", "*", True),
        ("a *photo", "*", True),
        ("a cat-toy.", "cat", True),
        ("category", "cat", False),
        ("bobcat", "cat", False),
        ("a <a  b> c", "<a b>", True),
        ("<ab>", "<a b>", False),
    ],
)
def test_a_placeholder_is_found_where_the_tokenizer_finds_it(text, placeholder, found):
    from ldm.text.tokenizer import Tokenizer

    assert contains_placeholder(text, placeholder) is found
    vocab = Path(__file__).parents[2] / "ldm" / "assets" / "emoji" / "vocab.txt"
    if vocab.exists():
        tokenizer = Tokenizer(vocab, 32)
        tokenizer.add_placeholder(placeholder)
        assert (max(tokenizer.words(text)) >= tokenizer.vocab_size) is found


# ------------------------------------------------------------------------------- prompts
@pytest.mark.parametrize("kind, lines", [("object", OBJECT), ("style", STYLE)])
def test_templates_are_drawn_evenly_and_hold_the_placeholder(kind, lines):
    source, generator = PromptSource("<x>", kind=kind), rng()
    n = 200 * len(lines)
    drawn = Counter(source.prompt(0, generator) for _ in range(n))
    expected = Counter(line.replace("{}", "<x>") for line in lines)
    assert drawn.keys() == expected.keys()
    for line, times in expected.items():
        assert abs(drawn[line] / n - times / len(lines)) < 0.4 * times / len(lines)


def test_per_image_words_come_in_one_prompt_of_four_and_are_the_images_own():
    source, generator = PromptSource("*", kind="dual", image_tokens=["S1", "S2"]), rng()
    drawn = [source.prompt(1, generator) for _ in range(4000)]
    dual = [p for p in drawn if p.endswith(" with S2")]
    assert 0.22 < len(dual) / len(drawn) < 0.28
    assert set(dual) == {line.format("*", "S2") for line in DUAL}
    assert not any("S1" in p for p in drawn) and all("*" in p for p in drawn)


def test_captions_are_drawn_for_their_own_picture():
    source = PromptSource("*", captions=[("* a", "* b"), ("* c",)])
    generator = rng()
    assert {source.prompt(0, generator) for _ in range(50)} == {"* a", "* b"}
    assert {source.prompt(1, generator) for _ in range(50)} == {"* c"}


def test_the_same_generator_gives_the_same_prompts_and_touches_no_global_state():
    source = PromptSource("*")
    before = torch.random.get_rng_state()
    assert source.prompts([0] * 9, rng(3)) == source.prompts([0] * 9, rng(3))
    assert source.prompts([0] * 9, rng(3)) != source.prompts([0] * 9, rng(4))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "dual"},
        {"image_tokens": ["a"]},
        {"kind": "objects"},
        {"captions": [("*",)], "image_tokens": ["a"], "kind": "dual"},
    ],
)
def test_combinations_that_make_no_sense_are_refused(wrong):
    with pytest.raises(UserError):
        PromptSource("*", **wrong)


# ------------------------------------------------------------------------------- which file, which letters
@pytest.mark.parametrize(
    "name", ["a.txt", "a.TXT", "A.txt", "a.caption", "a.Caption", "a.png.txt", "a.png.caption", "a.PNG.txt"]
)
def test_a_caption_is_read_by_every_name_that_tools_give_it(tmp_path, name, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / name).write_text("a photo of {}")
    paths = list_pictures(tmp_path)
    assert has_captions(paths) and read_captions(paths, "*") == [("a photo of *",)]
    assert FolderPictures(str(tmp_path), 8).captions == ["a photo of {}"]
    assert not caplog.records


def test_of_several_captions_the_one_that_is_read_is_named(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("old {}")
    (tmp_path / "a.txt").write_text("new {}")
    assert read_captions([tmp_path / "a.png"], "*") == [("new *",)]
    assert "a.txt is read, and a.caption is not" in caplog.text


@pytest.mark.parametrize("name", ["b.txt", "a.text.txt", "metadata.jsonl", "a.json"])
def test_a_text_that_is_no_caption_is_named(tmp_path, name, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / name).write_text("x")
    assert not has_captions(list_pictures(tmp_path))
    assert name in caplog.text


ENCODINGS = {"utf-8": "Gänse von {}", "utf-8-sig": "Gänse von {}", "utf-16": "Gänse {} 鹅",
             "cp1252": "Gänse von {}"}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_caption_in_any_usual_encoding_is_read_the_same_whatever_the_locale(
    tmp_path, encoding, caplog, monkeypatch
):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(ENCODINGS[encoding].encode(encoding))
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    monkeypatch.setattr("io.text_encoding", lambda *_: "ascii")
    assert FolderPictures(str(tmp_path), 8).captions == [ENCODINGS[encoding]]
    assert read_captions([tmp_path / "a.png"], "*") == [(ENCODINGS[encoding].replace("{}", "*"),)]
    assert ("a.txt is not in UTF-8" in caplog.text) == (encoding == "cp1252")


@pytest.mark.parametrize("content", [b"a \x81 {}", b"a {}\0\0", b"\xff\xfe\x00"])
def test_what_is_no_text_is_refused(tmp_path, content):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(content)
    for read in (lambda: read_captions([tmp_path / "a.png"], "*"), lambda: FolderPictures(str(tmp_path), 8)):
        with pytest.raises(UserError, match="a.txt is no text"):
            read()


def test_templates_of_ones_own_are_drawn_alone_and_continued_by_the_pictures_word():
    own = ("my {} at home", "{} asleep")
    drawn = Counter(PromptSource("<x>", kind=own).prompts([0] * 200, rng()))
    assert drawn.keys() == {"my <x> at home", "<x> asleep"}
    source = PromptSource("<x>", kind=own, image_tokens=["<x>_0", "<x>_1"], mixing_prob=0.5)
    drawn = Counter(source.prompts([1] * 400, rng()))
    plain = {"my <x> at home", "<x> asleep"}
    assert drawn.keys() == plain | {f"{line} with <x>_1" for line in plain}


# ------------------------------------------------------------------------------ subsets of several words
def test_a_prompt_names_a_random_subset_of_what_its_picture_shows_by_seed_and_step_alone() -> None:
    shown = [("<a>", "<b>", "<c>"), ("<b>",)]
    source = PromptSource("<a>", kind=("a photo of {}",), subsets=shown)
    assert source.naming == ["<a> and <b> and <c>"]

    def drawn(seed: int, step: int) -> list[str]:
        return source.prompts([0, 1], generator(seed, "<a>", "batch", step))

    assert [drawn(1, step) for step in range(20)] == [drawn(1, step) for step in range(20)]
    assert [drawn(1, step) for step in range(20)] != [drawn(2, step) for step in range(20)]
    many = [drawn(1, step) for step in range(600)]
    assert {prompts[1] for prompts in many} == {"a photo of <b>"}
    sizes = Counter(prompts[0].count(" and ") for prompts in many)
    assert all(160 < sizes[n] < 240 for n in range(3))  # one, two and three words are as likely
    assert len({prompts[0] for prompts in many}) == 3 + 6 + 6  # in every order
