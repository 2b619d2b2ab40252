"""The WordPiece tokenizer: parity with transformers' BERT, placeholders, truncation, copies."""

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import UserError
from ldm.text.tokenizer import Tokenizer

SPECIAL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789", *".,!'*<>-[]_", "猫"]
WORDS = ["photo", "of", "cat", "toy", "cafe", "red", "un", "believe"]
CONTINUED = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxy"] + ["##able", "##log"]
VOCAB = SPECIAL + PIECES + WORDS + CONTINUED


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(vocab_file: Path) -> Tokenizer:
    return Tokenizer(vocab_file, max_length=16)


@pytest.fixture(scope="module")
def reference(vocab_file: Path):
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizer.from_pretrained(str(vocab_file.parent), do_lower_case=True)


def their_ids(reference, texts: list[str], length: int) -> torch.Tensor:
    batch = reference(texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    return batch["input_ids"]


@pytest.mark.parity
def test_agrees_with_transformers_on_prompts(tokenizer: Tokenizer, reference) -> None:
    texts = [
        "a photo of a cat",
        "A Café, UNbelievable cats' catalog!",
        "",
        "   red\tcat \n toy ",
        "zebra ☃ 猫猫 s*",
        "cat " * 40,
        "a" * 120,
    ]
    assert tokenizer(texts).equal(their_ids(reference, texts, 16))


@pytest.mark.parity
@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="abcTÉé .,'*-猫☃\u0301\u200b\n0", max_size=30))
def test_agrees_with_transformers_on_random_text(vocab_file: Path, reference, text: str) -> None:
    assert Tokenizer(vocab_file, 12)([text]).equal(their_ids(reference, [text], 12))


def test_rows_are_framed_and_padded(tokenizer: Tokenizer) -> None:
    row = tokenizer(["red cat"])[0]
    assert row.dtype == torch.int64 and row.shape == (16,)
    assert [tokenizer.decode_id(i) for i in row[:4].tolist()] == ["[CLS]", "red", "cat", "[SEP]"]
    assert set(row[4:].tolist()) == {tokenizer.pad_id}


def test_special_tokens_in_a_prompt_are_plain_text(tokenizer: Tokenizer) -> None:
    row = tokenizer(["a [SEP] b [PAD]"])[0].tolist()
    assert row.count(tokenizer.end_id) == 1
    assert tokenizer.pad_id not in row[: row.index(tokenizer.end_id)]


def test_too_long_a_prompt_is_cut_warned_of_once_and_keeps_its_end(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        row = tokenizer(["cat " * 30])[0]
        tokenizer(["cat " * 30])
    assert row[-1] == tokenizer.end_id and (row == tokenizer.end_id).sum() == 1
    assert len(caplog.records) == 1


def test_private_ids_lie_above_the_vocabulary_and_are_stable(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.add_placeholder(name) for name in ("S*", "cat", "<a b>", "*")]
    assert ids == [len(VOCAB) + i for i in range(4)]
    assert tokenizer.add_placeholder("cat") == ids[1]
    assert tokenizer.vocab_size == len(VOCAB)
    assert [tokenizer.decode_id(i) for i in ids] == ["S*", "cat", "<a b>", "*"]
    assert all(i < len(VOCAB) for i in tokenizer.words("a photo of red toy"))


def test_a_placeholder_never_steals_a_word(tokenizer: Tokenizer) -> None:
    tokenizer.add_placeholder("cat")
    assert tokenizer.words("cat") == [len(VOCAB)]
    pieces = ["cat", "##s", "cat", "##a", "##log"]
    assert tokenizer.words("cats catalog") == [VOCAB.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a photo of S*", ["S*"]),
        ("S*'s toy, S*.", ["S*", "S*"]),
        ("a * and S*", ["*", "S*"]),
        ("<cat-toy>_1 and <cat-toy>", ["<cat-toy>_1", "<cat-toy>"]),
        ("<cat-toy>_12", ["<cat-toy>"]),
        ("<a   b> red<a b>red", ["<a b>", "<a b>"]),
        ("s_0 S_0 xS_0 S_00", ["S_0"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("none here", []),
    ],
)
def test_placeholders_are_found_in_raw_text_longest_first(
    tokenizer: Tokenizer, text: str, found: list[str]
) -> None:
    for name in ("*", "S*", "<cat-toy>", "<cat-toy>_1", "<a b>", "S_0", "caf\u00e9"):
        tokenizer.add_placeholder(name)
    private = [i for i in tokenizer.words(text) if i >= tokenizer.vocab_size]
    assert [tokenizer.decode_id(i) for i in private] == found


def test_text_around_a_placeholder_is_tokenised_as_before(tokenizer: Tokenizer) -> None:
    plain = tokenizer.words("a photo of") + tokenizer.words("on red")
    private = tokenizer.add_placeholder("S*")
    ids = tokenizer.words("a photo of S* on red")
    assert [i for i in ids if i != private] == plain and ids.index(private) == 3


def test_removed_placeholder_is_text_again(tokenizer: Tokenizer) -> None:
    before = tokenizer.words("red S*")
    tokenizer.add_placeholder("S*")
    tokenizer.remove_placeholder("S*")
    assert tokenizer.words("red S*") == before and tokenizer.placeholders == {}


def test_wanted_ids_restore_a_run_and_clashes_are_refused(tokenizer: Tokenizer) -> None:
    assert tokenizer.add_placeholder("S*", len(VOCAB) + 5) == len(VOCAB) + 5
    assert tokenizer.add_placeholder("T*") == len(VOCAB) + 6
    for name, wanted in (("U*", 3), ("U*", len(VOCAB) + 5), ("S*", len(VOCAB) + 6)):
        with pytest.raises(UserError, match="taken"):
            tokenizer.add_placeholder(name, wanted)


def test_deep_copies_and_pickles_agree_and_are_independent(tokenizer: Tokenizer) -> None:
    tokenizer.add_placeholder("S*")
    expected = tokenizer(["a S* cat", "T*"])
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin(["a S* cat", "T*"]).equal(expected)
        twin.add_placeholder("T*")
        assert not twin(["T*"]).equal(expected[1:])
    assert tokenizer(["a S* cat", "T*"]).equal(expected)
    assert tokenizer.placeholders == {"S*": len(VOCAB)}


def test_bad_input_is_said_in_one_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "no-sep.txt").write_text("[PAD]\n[UNK]\n[CLS]\ncat\n")
    for make in (
        lambda: Tokenizer(tmp_path / "absent.txt"),
        lambda: Tokenizer(tmp_path / "no-sep.txt"),
        lambda: tokenizer.add_placeholder("  "),
        lambda: tokenizer.decode_id(len(VOCAB)),
    ):
        with pytest.raises(UserError) as error:
            make()
        assert "\n" not in str(error.value)


def test_remembered_prompts_follow_the_set_of_placeholders(tokenizer: Tokenizer) -> None:
    text = ["a cat on zork"]
    plain = tokenizer(text)
    private = tokenizer.add_placeholder("zork")
    assert (tokenizer(text) == private).sum() == 1
    tokenizer.remove_placeholder("zork")
    assert tokenizer(text).equal(plain) and tokenizer(text).equal(plain)


def test_the_pattern_of_all_placeholders_is_made_once_when_it_is_needed(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.text import tokenizer as module

    made: list[int] = []
    pattern = module._pattern
    monkeypatch.setattr(module, "_pattern", lambda names, *more: made.append(len(names)) or pattern(names))
    ids = [tokenizer.add_placeholder(f"<word-{i}>") for i in range(1000)]
    found = tokenizer(["a <word-7> and <word-999>", "<word-0>"])
    assert found[found >= ids[0]].tolist() == [ids[7], ids[999], ids[0]]
    assert made == [1000]
    assert tokenizer.decode_id(ids[500]) == "<word-500>"
