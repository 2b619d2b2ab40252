"""Learned words on disk: ours, the official and other tools' files, and no pickled code."""

import contextlib
import os
import random
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import Parameter, ParameterDict

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

NOTES = provenance(base_model="ab" * 32, step=500, seed=23, init="cat toy", templates="object",
                   image_hashes=["11", "22"])


def word(name: str = "<cat toy>", k: int = 2, d: int = 8, **notes: str) -> Embedding:
    return Embedding(name, torch.randn(k, d, generator=torch.Generator().manual_seed(k)),
                     NOTES | notes)


def assert_same(a: Embedding, b: Embedding) -> None:
    assert a.placeholder == b.placeholder and torch.equal(a.vectors, b.vectors)


# ---------------------------------------------------------------------------------- ours
def test_our_file_keeps_vectors_and_provenance_bit_by_bit(tmp_path):
    path = save_embeddings(word(), tmp_path / "a.safetensors")
    again = load_embedding(path)
    assert_same(again, word())
    assert again.metadata == NOTES and (again.K, again.D) == (2, 8)


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


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_diffusers_own_reader_takes_our_file(tmp_path, suffix):
    module = pytest.importorskip("diffusers.loaders.textual_inversion")
    path = save_embeddings(word("<cat-toy>"), tmp_path / f"a{suffix}")
    state = module.load_textual_inversion_state_dicts([str(path)])
    tokenizer = type("Tokenizer", (), {"get_vocab": lambda self: {}})()
    reader = module.TextualInversionLoaderMixin._retrieve_tokens_and_embeddings
    tokens, vectors = reader([None], state, tokenizer)
    assert tokens == ["<cat-toy>"] and torch.equal(vectors[0], word().vectors)


# ------------------------------------------------------------------------------ official
def test_the_official_pt_round_trips_with_provenance(tmp_path):
    path = save_embeddings([word("*", 1), word("cat", 2)], tmp_path / "a.pt",
                           token_ids={"*": 1008, "cat": 4937})
    again = load_embeddings(path)
    assert_same(again[0], word("*", 1))
    assert_same(again[1], word("cat", 2))
    assert again[1].metadata == NOTES | {"token_id": "4937"}
    assert_same(load_embeddings(save_embeddings(again, tmp_path / "b.pt"))[1], word("cat", 2))


def test_the_official_pt_is_what_the_official_code_expects(tmp_path):
    save_embeddings(word("*", 2, 1280), tmp_path / "bert.pt")
    save_embeddings(word("<x>", 2, 768), tmp_path / "clip.pt")
    for name, key, token in (("bert.pt", "*", 1008), ("clip.pt", "<x>", 265)):
        content = torch.load(tmp_path / name, weights_only=False)
        found = content["string_to_token"][key]
        assert found.dtype == torch.int64 and found.ndim == 0 and found.item() == token
        assert isinstance(content["string_to_param"], ParameterDict)
        assert isinstance(content["string_to_param"][key], Parameter)
        assert content["string_to_param"][key].shape[0] == 2


def official(params: object) -> dict:
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params}


@pytest.mark.parametrize("old", [True, False])
def test_official_files_of_every_torch_are_read(tmp_path, old):
    params = ParameterDict({"*": Parameter(word().vectors.clone())})
    if old:  # torch <= 1.11 had no _keys
        del params.__dict__["_keys"]
    torch.save(official(params), tmp_path / "a.pt")
    again = load_embedding(tmp_path / "a.pt")
    assert again.placeholder == "*" and torch.equal(again.vectors, word().vectors)
    assert not again.vectors.requires_grad


def test_several_placeholders_without_token_ids_are_refused(tmp_path):
    with pytest.raises(UserError, match="token_ids"):
        save_embeddings([word("a"), word("b")], tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["a.b", "keys"])
def test_a_name_that_an_official_pt_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="safetensors"):
        save_embeddings(word(name), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
    assert_same(load_embedding(save_embeddings(word(name), tmp_path / "a.safetensors")), word(name))


# --------------------------------------------------------------------------- other tools
def test_a1111_names_the_word_beside_it(tmp_path):
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": word().vectors},
                "name": "my-cat", "step": 900, "sd_checkpoint": "7460a6fa",
                "sd_checkpoint_name": "sd-v1-4"}, tmp_path / "x.pt")
    again = load_embedding(tmp_path / "x.pt")
    assert_same(again, word("my-cat"))
    assert again.metadata == {"step": "900", "base_model_hash": "7460a6fa",
                              "base_model_name": "sd-v1-4", "token_id": "265"}


def test_diffusers_files_old_and_new_and_half_precision_are_read(tmp_path):
    vectors = word(k=1).vectors
    torch.save({"<a>": vectors[0]}, tmp_path / "a.bin")
    torch.save({"<a>": Parameter(vectors)}, tmp_path / "b.bin")
    save_file({"<a>": vectors.half()}, tmp_path / "c.safetensors")
    for name in ("a.bin", "b.bin", "c.safetensors"):
        again = load_embedding(tmp_path / name)
        assert again.placeholder == "<a>" and again.vectors.dtype == torch.float32
        assert torch.allclose(again.vectors, vectors, atol=1e-2 if name[0] == "c" else 0)


@pytest.mark.parametrize("key", ["emb_params", "emp_params"])
def test_unnamed_embeddings_take_the_files_name(tmp_path, key):
    save_file({key: word().vectors}, tmp_path / "my-cat.safetensors")
    assert_same(load_embedding(tmp_path / "my-cat.safetensors"), word("my-cat"))


@pytest.mark.parametrize("keys, words", [(["emp_params_out"], "output embedding"),
                                         (["clip_l", "clip_g"], "SDXL"),
                                         (["text_encoders_0"], "SDXL")])
def test_kinds_that_cannot_be_used_are_refused_by_name(tmp_path, keys, words):
    save_file({k: word().vectors.clone() for k in keys}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words):
        load_embeddings(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------------ bad input
class Bomb:
    def __init__(self, flag: str) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_runs(tmp_path, zipped):
    flag = tmp_path / "ran"
    torch.save(official({"*": word().vectors}) | {"name": Bomb(str(flag))}, tmp_path / "x.pt",
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="refused"):
        load_embeddings(tmp_path / "x.pt")
    assert not flag.exists()


@pytest.mark.parametrize("content", [
    torch.nn.Linear(2, 2), [torch.ones(2)], torch.ones(2), {}, {"a": 1}, official({}),
    official(torch.ones(2)), {"w": torch.ones(2, 2, 2)}, {"a": torch.ones(2, dtype=torch.int64)},
    {"a": torch.full((1, 2), float("nan"))}, {"a": torch.ones(0, 2)},
    {"state_dict": {"a": torch.ones(2)}}, {" ": torch.ones(2)},
], ids=lambda c: str(type(c).__name__))
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


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_flipped_bytes_are_never_more_than_a_user_error(tmp_path, suffix):
    path = save_embeddings(word(), tmp_path / f"a{suffix}")
    data, draw = path.read_bytes(), random.Random(0)
    for _ in range(100):
        broken = bytearray(data)
        for _ in range(3):
            broken[draw.randrange(400)] = draw.randrange(256)
        path.write_bytes(broken)
        with contextlib.suppress(UserError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
