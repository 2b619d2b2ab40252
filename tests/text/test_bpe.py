"""Token ids of CLIP and BERT are transformers' and open_clip's; placeholders are found before BPE."""

import copy
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm.config import ASSETS
from ldm.errors import UserError
from ldm.inversion.templates import OBJECT, STYLE
from ldm.text.bpe import ClipTokenizer
from ldm.text.tokenizer import PlaceholderTokenizer, Tokenizer

START, END = 49406, 49407
BERT = ASSETS / "bert" / "vocab.txt"
FRAGMENTS = [
    *("cat", "Dogs'", "it's", "we'll", "DON'T", "1984", "3.14", "50%", "$5,000", "e-mail@x.org", "#tag"),
    *("Café", "naïve", "Straße", "İstanbul", "ΣΑΣ", "Москва", "東京の猫", "서울", "العربية", "हिन्दी", "ﬁne"),
    *("e\u0301", "n\u0303", "\u00a0", "\u200b", "\u200d", "\u3000", "\t", "\n", "\r\n", "\ufeff", "\u2028"),
    *("🎉", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "☃", "∑∞≈", "½", "²", "Ⅷ", "№", "—", "…", "«»", "“q”", "‘s"),
    *("<cat-toy>", "S*", "*", "<|x|>", "!!!", "?!…", "...", "(a)", "{}", "\\n", "a_b", "~`^|"),
    *("&amp;", "&lt;b&gt;", "Ã©", "â€™", "antidisestablishmentarianism"),
    *("x" * 120, "word " * 90, "long " * 80, ""),
]


def prompts(n: int = 1000) -> list[str]:
    """Prompts of all kinds, some too long for 77 positions."""
    draw = random.Random(0)
    sentences = [line.format("toy cat") for line in OBJECT + STYLE]
    made = [
        draw.choice([" ", "", ", "]).join(draw.choices([*FRAGMENTS, *sentences], k=draw.randrange(1, 9)))
        for _ in range(n - len(sentences))
    ]
    return sentences + made


def hugging_face(tokenizer: Callable[..., Any], texts: list[str]) -> Tensor:
    settings = {"truncation": True, "max_length": 77, "padding": "max_length"}
    return tokenizer(texts, return_tensors="pt", **settings)["input_ids"]


def theirs(kind: str, folder: Path) -> Callable[[list[str]], Tensor]:
    import transformers

    if kind == "open_clip":
        return lambda texts: open_clip.tokenize(texts)
    if kind == "bert":
        bert = transformers.BertTokenizer.from_pretrained(str(BERT.parent), do_lower_case=True)
        return lambda texts: hugging_face(bert, texts)
    clip = transformers.CLIPTokenizer.from_pretrained(str(folder))
    return lambda texts: hugging_face(clip, texts)


OURS: dict[str, Callable[[], PlaceholderTokenizer]] = {
    "clip": lambda: ClipTokenizer(),
    "open_clip": lambda: ClipTokenizer(pad="!", mend=True),
    "bert": lambda: Tokenizer(BERT),
}


@pytest.mark.parity
@pytest.mark.parametrize("kind", OURS)
def test_ids_of_1000_prompts_are_the_reference_implementations(kind: str, clip_vocabulary: Path) -> None:
    texts = prompts()
    assert len(texts) == 1000 and len(set(texts)) > 900
    tokenizer = OURS[kind]()
    assert sum(len(tokenizer.words(text)) > 75 for text in texts) > 30  # too long for a row
    expected = theirs(kind, clip_vocabulary)(texts)
    rows = zip(texts, tokenizer(texts), expected, strict=True)
    assert [text for text, ours, theirs in rows if not ours.equal(theirs)] == []


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_ids_of_random_text_are_the_reference_implementations(kind: str, clip_vocabulary: Path) -> None:
    ours, reference = OURS[kind](), theirs(kind, clip_vocabulary)

    @settings(max_examples=150, deadline=None)
    @example(":Õ\x98")  # mended to U+0558, a letter since Unicode 18
    @example("it'ſ")  # an "s" where case is ignored
    @example("\U00011935\U00011930")  # one character in NFC since Unicode 13
    @example("a\u0898\u0323")  # in another order in NFC since Unicode 14
    @given(text=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=12))
    def check(text: str) -> None:
        assert ours([text]).equal(reference([text]))

    check()


def test_rows_are_framed_and_padded_as_each_version_does() -> None:
    one, two = OURS["clip"]()(["a cat"])[0], OURS["open_clip"]()(["a cat"])[0]
    assert one[:4].tolist() == two[:4].tolist() == [START, 320, 2368, END]
    assert set(one[4:].tolist()) == {END} and set(two[4:].tolist()) == {0}
    assert one.dtype == torch.int64 and len(one) == len(two) == 77


def test_the_frame_written_in_a_prompt_is_plain_text() -> None:
    for kind, text in (("clip", "a <|endoftext|> b"), ("open_clip", "a <end_of_text> <start_of_text>")):
        ids = OURS[kind]().words(text)
        assert END not in ids and START not in ids and len(ids) > 3


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_placeholders_have_private_ids_and_steal_no_word(kind: str) -> None:
    tokenizer = OURS[kind]()
    around = tokenizer.words("a photo of") + tokenizer.words("'s cats, red")
    private = tokenizer.add_placeholder("<cat-toy>"), tokenizer.add_placeholder("cat")
    assert private == (49408, 49409)
    ids = tokenizer.words("a photo of <cat-toy>'s cats, red")
    assert ids.count(private[0]) == 1 and [i for i in ids if i not in private] == around
    assert tokenizer.decode_id(private[0]) == "<cat-toy>" and tokenizer.decode_id(2368) == "cat</w>"
    twin = pickle.loads(pickle.dumps(copy.deepcopy(tokenizer)))
    assert twin(["a <cat-toy> &amp; cat"]).equal(tokenizer(["a <cat-toy> &amp; cat"]))


def test_private_ids_lie_above_a_longer_token_table() -> None:
    assert ClipTokenizer(rows=50_000).add_placeholder("S*") == 50_000
    assert ClipTokenizer(rows=100).add_placeholder("S*") == 49_408


@pytest.mark.parametrize("saved", [False, True])
def test_a_folder_brings_its_own_small_vocabulary_and_padding(tmp_path: Path, saved: bool) -> None:
    import transformers

    words = ["<|startoftext|>", "<|endoftext|>", "c", "a", "t</w>", "a</w>", "at</w>", "cat</w>", "!"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "!"}}')
    reference = transformers.CLIPTokenizer.from_pretrained(str(tmp_path), pad_token="!")
    if saved:  # newer folders hold one tokenizer.json
        (tmp_path / "vocab.json").unlink()
        reference.save_pretrained(tmp_path)
    ours = ClipTokenizer(folder=tmp_path)
    texts = ["a cat", "dog", ""]
    assert ours(texts).equal(hugging_face(reference, texts))
    assert ours(["a cat"])[0, :5].tolist() == [0, 5, 7, 1, 8]
    assert ours.unknown_id in ours.words("dog")


def test_a_folder_without_a_vocabulary_is_said_in_one_line(tmp_path: Path) -> None:
    messages = []
    for content in (None, "[]", '{"a": 0}', '{"<|startoftext|>": 0, "<|endoftext|>": 1}'):
        if content is not None:
            (tmp_path / "vocab.json").write_text(content)
            (tmp_path / "merges.txt").write_text("")
        with pytest.raises(UserError) as caught:
            ClipTokenizer(folder=tmp_path, pad="?")
        messages.append(str(caught.value))
    assert all("\n" not in message for message in messages) and "padding token" in messages[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), [
    ("merges.txt", "#version: 0.2\nzz qq\n"), ("tokenizer_config.json", "{"), ("vocab.json", "[" * 100_000),
    ("tokenizer_config.json", "\xff"), ("tokenizer_config.json", "[" * 100_000),
    ("vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": 99999999999999999999}'),
    ("vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": 1e999}'), ("added_tokens.json", '{"<a>": 1e999}'),
    ("special_tokens_map.json", '{"pad_token": {}}'), ("special_tokens_map.json", "[]"),
])  # fmt: skip
def test_a_damaged_file_of_a_tokenizer_is_one_line(tmp_path, clip_vocabulary, name, text):
    for path in clip_vocabulary.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        ClipTokenizer(folder=tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_pipe_among_the_files_of_a_tokenizer_waits_for_nobody(tmp_path, clip_vocabulary, name):
    for path in clip_vocabulary.iterdir():
        if path.name != name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    os.mkfifo(tmp_path / name)
    if name == "tokenizer_config.json":
        ClipTokenizer(folder=tmp_path)
    else:
        with pytest.raises(UserError, match="holds no CLIP vocabulary|pipe"):
            ClipTokenizer(folder=tmp_path)


@pytest.mark.parametrize(("kind", "held"), [("clip", 1125), ("bert", 6302)])
def test_whole_words_name_something_and_are_no_ends_of_words(kind: str, held: int) -> None:
    tokenizer = OURS[kind]()
    tokenizer._tokens = tokenizer._tokens[:7000]  # those that come first; all of them take a second
    found = tokenizer.whole_words()
    assert {"cat", "photo", "house"} <= set(found) and found["photo"] == held
    assert not {"the", "ca", "ation", "##ing", "cat</w>", "!"} & set(found)
    assert list(found.values()) == sorted(found.values())
