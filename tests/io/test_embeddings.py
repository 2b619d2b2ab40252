"""Learned words in memory and in our own file; test_embedding_formats.py has everybody's."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.io.embeddings import (
    Embedding,
    check_base_model,
    check_width,
    load_embedding,
    load_embeddings,
    provenance,
    save_embeddings,
)

NOTES = provenance(
    base_model="ab" * 32, step=500, seed=23, init="cat toy", templates="object", image_hashes=["11", "22"]
)


def word(name: str = "<cat toy>", k: int = 2, d: int = 8, **notes: str) -> Embedding:
    return Embedding(name, torch.randn(k, d, generator=torch.Generator().manual_seed(k)), NOTES | notes)


def assert_same(a: Embedding, b: Embedding) -> None:
    assert a.placeholder == b.placeholder and torch.equal(a.vectors, b.vectors)


# ---------------------------------------------------------------------------------- ours
def test_our_file_keeps_vectors_and_provenance_bit_by_bit(tmp_path):
    path = save_embeddings(word(), tmp_path / "a.safetensors")
    again = load_embedding(path)
    assert_same(again, word())
    assert again.metadata == NOTES and (again.K, again.D) == (2, 8)


def test_vectors_for_each_layer_are_kept_in_our_file_alone(tmp_path):
    layered = Embedding("<cat>", torch.randn(4, 2, 8), NOTES)
    assert (layered.layers, layered.K, layered.D, layered.widths) == (4, 2, 8, (8,))
    assert layered.size == "2 of width 8, for each of 4 layers" and word().size == "2 of width 8"
    again = load_embeddings(save_embeddings([layered, word("plain")], tmp_path / "a.safetensors"))
    for a, b in zip(again, (layered, word("plain")), strict=True):
        assert_same(a, b)
    for name in ("b.pt", "b.bin", "b.png"):
        with pytest.raises(
            UserError,
            match="<cat> is 2 of width 8, for each of 4 layers, a word of kind per_layer.*safetensors",
        ):
            save_embeddings([layered], tmp_path / name)
    save_file({"conv": torch.zeros(4, 2, 8)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="holds no embedding"):
        load_embedding(tmp_path / "foreign.safetensors")
    assert not list(tmp_path.glob("b.*"))


def test_one_file_holds_several_words_each_with_its_own_notes_in_order(tmp_path):
    words = [word("z", 1), word("*", 3, step="7"), word("é b", 2, seed="5")]
    again = load_embeddings(save_embeddings(words, tmp_path / "a.safetensors"))
    for a, b in zip(again, words, strict=True):
        assert_same(a, b)
        assert a.metadata == b.metadata
    with pytest.raises(UserError, match="holds 3 embeddings"):
        load_embedding(tmp_path / "a.safetensors")


def test_our_file_is_the_layout_of_diffusers_with_readable_metadata(tmp_path):
    import json

    with safe_open(save_embeddings(word(), tmp_path / "a.safetensors"), "pt") as handle:
        assert list(handle.keys()) == ["<cat toy>"]
        notes = json.loads(handle.metadata()["embeddings"])["<cat toy>"]
    assert notes == NOTES | {"placeholder": "<cat toy>", "K": "2", "D": "8"}


# ------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    "content",
    [
        torch.nn.Linear(2, 2),
        [torch.ones(2)],
        torch.ones(2),
        {},
        {"a": 1},
        {"string_to_param": {}},
        {"string_to_param": torch.ones(2)},
        {"w": torch.ones(2, 2, 2)},
        {"a": torch.ones(2, dtype=torch.int64)},
        {"a": torch.full((1, 2), float("nan"))},
        {"a": torch.ones(0, 2)},
        {"state_dict": {"a": torch.ones(2)}},
        {" ": torch.ones(2)},
    ],
    ids=lambda c: str(type(c).__name__),
)
def test_a_file_without_a_usable_embedding_is_a_one_line_error(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError) as caught:
        load_embeddings(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_missing_and_cut_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.pt"):
        load_embeddings(tmp_path / "nowhere.pt")
    for name in ("x.safetensors", "x.pt", "x.bin"):
        path = save_embeddings(word(), tmp_path / name)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(UserError, match=name):
            load_embeddings(path)


def test_unknown_suffixes_empty_lists_and_names_given_twice_are_refused(tmp_path):
    for words, name in ((word(), "a.txt"), ([], "a.safetensors"), ([word()] * 2, "a.pt")):
        with pytest.raises(UserError, match="cannot write"):
            save_embeddings(words, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch):
    import errno

    path = save_embeddings(word(), tmp_path / "a.safetensors")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_embeddings(word("other"), path)
    assert_same(load_embedding(path), word())
    assert len(list(tmp_path.iterdir())) == 1


def test_the_wrong_width_is_said_with_both_widths():
    check_width(word(d=8), 8)
    with pytest.raises(UserError, match="width 8.* 1280.*another model"):
        check_width(word(d=8), 1280)


def test_another_base_model_is_a_warning(caplog):
    assert check_base_model(word(), "ab" * 32) and not caplog.records
    assert check_base_model(Embedding("a", torch.ones(2)), "ff") and not caplog.records
    assert not check_base_model(word(), "ff" * 32)
    assert "another base model" in caplog.text


def test_an_embedding_is_a_copy_in_float32():
    source = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    kept = Embedding("a", source)
    source.data.zero_()
    assert kept.vectors.tolist() == [[1, 1, 1]] and kept.vectors.dtype == torch.float32
