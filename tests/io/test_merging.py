"""Words of several files as one list."""

from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.io.embeddings import Embedding, read_file, save_embeddings
from ldm.io.merging import joined, merge, renamed


@pytest.fixture
def files(tmp_path):
    """Two files of the official code, each with a word "*", of one vector and of two."""
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for k, path in enumerate(paths, start=1):
        save_embeddings(Embedding("*", torch.full((k, 768), float(k))), path)
    return [read_file(path) for path in paths]


def test_a_new_name_belongs_to_another_token():
    word = renamed(Embedding("*", torch.ones(1, 4), {"token_id": "265", "step": "5"}), "<toy>")
    assert word.placeholder == "<toy>" and word.metadata == {"step": "5"}


def test_words_are_merged_under_names_of_their_own(files):
    both = merge(files, {"*": "first", f"{files[1].path}:*": "second"})
    assert [(word.placeholder, word.K) for word in both] == [("first", 1), ("second", 2)]


def test_two_words_of_one_name_are_refused_or_the_collision_decides(files):
    with pytest.raises(UserError, match="both hold '\\*': give one of them another name"):
        merge(files)
    seen: list[tuple[Path, Path]] = []

    def later(word: Embedding, earlier: Path, own: Path) -> Embedding:
        seen.append((earlier, own))
        return word

    (word,) = merge(files, collision=later)
    assert word.K == 2 and seen == [(files[0].path, files[1].path)]


def test_a_new_name_for_a_word_that_is_not_there_is_refused(files):
    with pytest.raises(UserError, match="no embedding is called '<cow>'"):
        merge(files, {"<cow>": "x", "*": "y"}, collision=lambda word, *_: word)


def test_two_files_are_the_halves_of_one_word_or_are_refused(files, tmp_path):
    half, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_embeddings(Embedding("<toy>", torch.ones(1, 768)), half)
    save_embeddings(Embedding("<toy>", torch.ones(1, 1280)), other)
    (word,) = joined([half, other])
    assert word.widths == (768, 1280)
    assert joined([half])[0].widths == (768,)
    with pytest.raises(UserError, match="3 files cannot be converted into one"):
        joined([half, other, files[0].path])
