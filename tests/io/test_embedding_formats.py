"""Every embedding format: written exactly as its tool writes it, told by content, read bit by bit."""

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import Parameter, ParameterDict

from ldm.errors import UserError
from ldm.io.embedding_formats import FORMATS
from ldm.io.embeddings import (
    Embedding,
    check_width,
    join_encoders,
    likely_base,
    load_embedding,
    load_embeddings,
    provenance,
    read_file,
    save_embeddings,
)

SINGLE = [f for f in FORMATS if f.encoders == 1]
NOTES = provenance(base_model="ab" * 32, step=500, seed=23)


def word(name: str = "<cat-toy>", k: int = 2, d: int = 8, **notes: str) -> Embedding:
    return Embedding(name, torch.randn(k, d, generator=torch.Generator().manual_seed(k)), NOTES | notes)


def pair(k: int = 2) -> Embedding:
    return Embedding("<cat-toy>", word(k=k, d=768).vectors, NOTES, word(k=k + 1, d=1280).vectors[:k])


def write(embedding: Embedding, folder, format: str, stem: str = "x"):
    suffix = next(f.suffix for f in FORMATS if f.name == format)
    return save_embeddings(embedding, folder / f"{stem}{suffix}", format=format)


def assert_same(a: Embedding, b: Embedding) -> None:
    assert a.placeholder == b.placeholder and torch.equal(a.vectors, b.vectors)
    assert a.vectors.dtype == torch.float32


def only(path) -> Embedding:
    (found,) = read_file(path).words
    return found


# ------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("format", [f.name for f in SINGLE])
def test_every_format_round_trips_bit_by_bit_and_is_recognised(tmp_path, format, k):
    path = write(word(k=k), tmp_path, format)
    assert read_file(path).format.name == format
    assert_same(load_embedding(path), word(k=k))


@pytest.mark.parametrize("format", [f.name for f in SINGLE])
def test_every_format_converts_into_every_other(tmp_path, format):
    first = load_embedding(write(word(), tmp_path, format))
    for other in SINGLE:
        assert_same(load_embedding(write(first, tmp_path, other.name, stem="y")), word())


@pytest.mark.parametrize("format", [f.name for f in FORMATS if f.name != "sdxl-diffusers"])
def test_a_format_is_told_by_content_and_never_by_suffix(tmp_path, format):
    known = next(f for f in FORMATS if f.name == format)
    path = write(pair() if known.encoders == 2 else word(), tmp_path, format)
    for suffix in (".pt", ".safetensors", ".png", ".txt", ""):
        path = path.rename(path.with_suffix(suffix))
        assert read_file(path).format is known


def test_a_name_that_means_another_format_is_not_written(tmp_path):
    for name in ("emb_params", "clip_l", "text_encoders_1", "emp_params_out", "__metadata__"):
        with pytest.raises(UserError, match="rename it"):
            save_embeddings(word(name), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_format_needs_its_suffix_its_encoders_and_room(tmp_path):
    for words, name, format, says in (
        (word(), "x.pt", "kohya", "name it x.safetensors"),
        (word(), "x.safetensors", "sdxl", "choose .*kohya"),
        (pair(), "x.safetensors", "kohya", "choose sdxl"),
        (pair(), "x.pt", None, "name it .safetensors"),
        (word(), "x.pt", "A1111", "no embedding format 'A1111'; the formats are .*a1111-pt"),
        ([word("a"), word("b")], "x.pt", "a1111-pt", "one embedding a file, not 2"),
    ):
        with pytest.raises(UserError, match=says):
            save_embeddings(words, tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ official
def test_the_official_pt_is_exactly_what_the_official_code_writes_and_looks_up(tmp_path):
    for name, d, star in (("*", 1280, 1008), ("<x>", 768, 265)):
        content = torch.load(write(word(name, d=d), tmp_path, "official"), weights_only=False)
        assert list(content) == ["string_to_token", "string_to_param"]
        tokens, params = content["string_to_token"], content["string_to_param"]
        assert type(tokens) is dict and type(params) is ParameterDict
        assert isinstance(params[name], Parameter) and torch.equal(params[name], word(name, d=d).vectors)
        assert tokens[name].dtype == torch.int64 and tokens[name].ndim == 0
        # the official lookup: where a row of ids holds the token, its embedding becomes the vectors
        ids, embedded = torch.tensor([[101, star, 102]]), torch.zeros(1, 3, d)
        embedded[torch.where(ids == tokens[name])] = params[name][:1]
        assert torch.equal(embedded[0, 1], params[name][0]) and not embedded[0, ::2].any()


def test_the_official_pt_keeps_the_token_ids_of_several_words(tmp_path):
    words = [word("*", 1), word("cat", 2)]
    path = save_embeddings(words, tmp_path / "a.pt", token_ids={"*": 1008, "cat": 4937})
    again = load_embeddings(path)
    assert [w.metadata for w in again] == [{"token_id": "1008"}, {"token_id": "4937"}]
    for a, b in zip(load_embeddings(save_embeddings(again, tmp_path / "b.pt")), words, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("ids", [{}, {"a": 7}, {"a": 7, "b": 7}])
def test_an_official_pt_of_several_words_needs_a_token_id_for_each(tmp_path, ids):
    with pytest.raises(UserError, match="token_ids"):
        save_embeddings([word("a"), word("b")], tmp_path / "a.pt", token_ids=ids)


@pytest.mark.parametrize("key", ["clip_g", "text_encoders_0", "text_encoders_1"])
def test_half_of_a_word_of_sdxl_is_named(tmp_path, key):
    save_file({key: torch.ones(2, 1280)}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=f"half.safetensors: it holds {key} alone, half of a word of SDXL"):
        load_embeddings(tmp_path / "half.safetensors")


@pytest.mark.parametrize("name", ["a.b", "keys", "training", "_parameters"])
def test_a_name_that_an_official_pt_cannot_hold_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="safetensors"):
        save_embeddings(word(name), tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())
    assert_same(load_embedding(save_embeddings(word(name), tmp_path / "a.safetensors")), word(name))


@pytest.mark.parametrize("kind", ["today's", "torch <= 1.11", "a dict, not zipped"])
def test_official_files_of_every_torch_and_from_a_gpu_are_read(tmp_path, monkeypatch, kind):
    params = ParameterDict({"*": Parameter(word().vectors.clone())})
    if kind == "torch <= 1.11":
        del params.__dict__["_keys"]
    zipped = "dict" not in kind
    params = params if zipped else dict(params.items())
    content = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": params}
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in (tmp_path / "a.pt").read_bytes()
    again = load_embedding(tmp_path / "a.pt")
    assert_same(again, word("*"))
    assert not again.vectors.requires_grad and again.metadata == {"token_id": "265"}


def test_a_word_of_a_run_has_the_id_that_its_models_vocabulary_has(tmp_path):
    notes = provenance(base_model="", step=1, seed=1, token_id=7)
    for d in (768, 1280):
        path = save_embeddings(Embedding("<x>", word(d=d).vectors, notes), tmp_path / "a.pt")
        assert load_embedding(path).metadata == {"token_id": "7"}


# ------------------------------------------------------------------------------- A1111
A1111 = {"string_to_token": {"*": 265}, "name": "my-cat", "step": 900, "sd_checkpoint": "7460a6fa",
         "sd_checkpoint_name": "sd-v1-4"}  # fmt: skip
A1111_NOTES = {"step": "900", "base_model_hash": "7460a6fa", "base_model_name": "sd-v1-4"}


def test_the_a1111_pt_is_exactly_what_the_web_ui_writes(tmp_path):
    path = write(Embedding("my-cat", word().vectors, A1111_NOTES), tmp_path, "a1111-pt")
    content = torch.load(path, weights_only=True)
    vectors = content.pop("string_to_param")
    assert list(vectors) == ["*"] and type(vectors["*"]) is torch.Tensor
    assert vectors["*"].dtype == torch.float32 and torch.equal(vectors["*"], word().vectors)
    assert content == A1111
    assert torch.load(write(Embedding("a", torch.ones(1, 2)), tmp_path, "a1111-pt"))["step"] is None


def test_a1111_keeps_name_step_and_model_beside_the_word(tmp_path):
    torch.save(A1111 | {"string_to_param": {"*": word().vectors}}, tmp_path / "x.pt")
    again = load_embedding(tmp_path / "x.pt")
    assert_same(again, word("my-cat"))
    assert again.metadata == A1111_NOTES | {"token_id": "265"}


def test_the_a1111_png_carries_the_json_of_the_web_ui(tmp_path):
    path = write(Embedding("my-cat", word().vectors, A1111_NOTES), tmp_path, "a1111-png")
    picture = Image.open(path)
    picture.load()
    content = json.loads(base64.b64decode(picture.text["sd-ti-embedding"]))
    vectors = content.pop("string_to_param")
    assert content == A1111
    assert list(vectors) == ["*"] and list(vectors["*"]) == ["TORCHTENSOR"]
    assert torch.equal(torch.tensor(vectors["*"]["TORCHTENSOR"]), word().vectors)


def pixels_of_the_web_ui(values: dict, height: int = 16) -> Image.Image:
    """A picture with data in its pixels, step by step as the web UI's readers undo it."""
    data = zlib.compress(json.dumps(values).encode(), 9)
    width = -(-len(data) // (height * 3))
    state, noise = 0, []
    for _ in range(height * width * 3):
        state = (1664525 * state + 1013904223) % 2**32
        noise.append(state % 255 & 0x0F)
    padded = (data * (len(noise) // len(data) + 1))[: len(noise)]
    blocks = []
    for shift in (0, 4):
        nibbles = [(byte >> shift & 0x0F) ^ n for byte, n in zip(padded, noise, strict=True)]
        # the web UI draws a pattern in the high bits; any will do
        blocks.append(np.array(nibbles, np.uint8).reshape(height, width, 3) | 0x50)
    black, middle = np.zeros((height, 1, 3), np.uint8), np.full((height, 9, 3), 77, np.uint8)
    row = np.concatenate([blocks[0], black, middle, black, blocks[1]], axis=1)
    return Image.fromarray(np.pad(row, ((2, 3), (4, 1), (0, 0))))


def test_a_png_whose_text_was_stripped_is_read_from_its_pixels(tmp_path):
    values = A1111 | {"string_to_param": {"*": {"TORCHTENSOR": word(k=3, d=48).vectors.tolist()}}}
    pixels_of_the_web_ui(values).save(tmp_path / "x.png")
    assert read_file(tmp_path / "x.png").format.name == "a1111-png"
    assert_same(only(tmp_path / "x.png"), word("my-cat", k=3, d=48))


@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_a_picture_without_an_embedding_is_refused_as_one(tmp_path, colour):
    Image.new("RGB", (20, 10), colour).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="a picture without an embedding"):
        load_embeddings(tmp_path / "x.png")


# -------------------------------------------------------------- kohya, OneTrainer, diffusers
@pytest.mark.parametrize(
    ("format", "key"), [("kohya", "emb_params"), ("onetrainer", "emp_params"), ("clip-l", "clip_l")]
)
def test_tools_of_one_fixed_name_get_exactly_that(tmp_path, format, key):
    content = load_file(write(word(k=3), tmp_path, format))
    assert list(content) == [key]
    assert content[key].dtype == torch.float32 and content[key].shape == (3, 8)


@pytest.mark.parametrize("key", ["emb_params", "emp_params", "clip_l"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_unnamed_embeddings_of_others_take_the_files_name(tmp_path, key, suffix):
    path = tmp_path / f"my-cat{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({key: word().vectors}, path)
    assert_same(load_embedding(path), word("my-cat"))


def test_notes_of_ours_that_name_no_word_leave_it_the_files_name(tmp_path):
    notes = {"format": "textual-inversion"}
    save_file({"emb_params": word().vectors}, tmp_path / "my-cat.safetensors", notes)
    assert load_embedding(tmp_path / "my-cat.safetensors").placeholder == "my-cat"


@pytest.mark.parametrize("keys", [["emp_params_out"], ["emp_params", "emp_params_out"], ["clip_l_out"],
                                  ["clip_l", "clip_l_out"]])  # fmt: skip
def test_output_embeddings_are_refused_by_name(tmp_path, keys):
    save_file({k: word().vectors.clone() for k in keys}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"{keys[-1]}.* an output embedding"):
        load_embeddings(tmp_path / "x.safetensors")


@pytest.mark.parametrize("k", [1, 3])
def test_diffusers_files_hold_one_tensor_a_word_however_many_vectors(tmp_path, k):
    pickled = torch.load(write(word(k=k), tmp_path, "diffusers-bin"), weights_only=True)
    for content in (load_file(write(word(k=k), tmp_path, "diffusers")), pickled):
        assert list(content) == ["<cat-toy>"] and type(content["<cat-toy>"]) is torch.Tensor
        assert content["<cat-toy>"].dtype == torch.float32 and content["<cat-toy>"].shape == (k, 8)


def test_diffusers_files_old_and_new_and_half_precision_are_read(tmp_path):
    vectors = word(k=1).vectors
    torch.save({"<a>": vectors[0]}, tmp_path / "a.bin")
    torch.save({"<a>": Parameter(vectors)}, tmp_path / "b.bin")
    save_file({"<a>": vectors.half()}, tmp_path / "c.safetensors")
    for name, dtype in (("a.bin", torch.float32), ("b.bin", torch.float32), ("c.safetensors", torch.float16)):
        again = load_embedding(tmp_path / name)
        assert again.placeholder == "<a>" and again.dtype == dtype
        assert torch.equal(again.vectors, vectors.to(dtype).float())


@pytest.fixture(scope="module")
def pipelines():
    """Makes diffusers' own pipeline around a tiny text encoder, fresh at each call."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]

    def make():
        tokenizer = transformers.CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[])
        config = transformers.CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, max_position_embeddings=12, bos_token_id=52, eos_token_id=53,
        )  # fmt: skip
        return diffusers.StableDiffusionPipeline(
            vae=None, unet=None, scheduler=None, safety_checker=None, feature_extractor=None,
            tokenizer=tokenizer, text_encoder=transformers.CLIPTextModel(config),
            requires_safety_checker=False,
        )  # fmt: skip

    return make


@pytest.mark.parity
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("format", ["diffusers", "diffusers-bin", "a1111-pt"])
def test_diffusers_own_pipeline_loads_our_files(tmp_path, pipelines, format, k):
    pipeline = pipelines()
    pipeline.load_textual_inversion(str(write(word(k=k), tmp_path, format)))
    names = ["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"][:k]
    assert pipeline.maybe_convert_prompt("a <cat-toy>", pipeline.tokenizer) == f"a {' '.join(names)}"
    ids = pipeline.tokenizer.convert_tokens_to_ids(names)
    assert min(ids) > 53
    assert torch.equal(pipeline.text_encoder.get_input_embeddings().weight[ids], word(k=k).vectors)


# -------------------------------------------------------------------------------- SDXL
def assert_same_pair(a: Embedding, b: Embedding) -> None:
    assert a.second is not None and b.second is not None
    assert torch.equal(a.vectors, b.vectors) and torch.equal(a.second, b.second)
    assert a.placeholder == b.placeholder


@pytest.mark.parametrize(("format", "keys"), [
    ("sdxl", ["clip_g", "clip_l"]), ("sdxl-pivotal", ["text_encoders_0", "text_encoders_1"])
])  # fmt: skip
def test_sdxl_files_round_trip_with_both_sets_of_vectors(tmp_path, format, keys):
    path = write(pair(), tmp_path, format)
    assert sorted(load_file(path)) == keys
    assert_same_pair(only(path), pair())
    assert only(path).metadata == NOTES
    with pytest.raises(UserError, match="SDXL.* two text encoders.* this model has one"):
        load_embeddings(path)


def test_sdxl_for_diffusers_is_two_files_that_join_again(tmp_path):
    first = write(pair(), tmp_path, "sdxl-diffusers", stem="learned_embeds")
    second = tmp_path / "learned_embeds_2.safetensors"
    assert [load_file(p)["<cat-toy>"].shape for p in (first, second)] == [(2, 768), (2, 1280)]
    assert_same_pair(join_encoders(only(first), only(second)), pair())
    with pytest.raises(UserError, match="width 1280 .* width 768 are not the two halves"):
        join_encoders(only(second), only(first))


def test_the_two_files_of_sdxl_are_written_both_or_not_at_all(tmp_path, monkeypatch):
    from ldm.io import embeddings

    whole, written = embeddings.write_content, []

    def fail_at_the_second(content, path):
        if written:
            raise UserError("no more room")
        written.append(path)
        whole(content, path)

    monkeypatch.setattr(embeddings, "write_content", fail_at_the_second)
    with pytest.raises(UserError, match="no more room"):
        write(pair(), tmp_path, "sdxl-diffusers")
    assert written and not list(tmp_path.iterdir())


def test_sdxl_with_half_of_its_vectors_missing_is_refused(tmp_path):
    for keys, shapes, says in (
        (["clip_g"], [(2, 8)], "holds clip_g alone"),
        (["clip_l", "clip_g"], [(2, 8), (3, 8)], "2 vectors .* and 3 for"),
    ):
        content = {key: torch.ones(shape) for key, shape in zip(keys, shapes, strict=True)}
        save_file(content, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match=says):
            read_file(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------------- widths
def test_widths_name_the_likely_base_model(tmp_path):
    assert likely_base(768) == "Stable Diffusion v1" and likely_base(5) == ""
    with pytest.raises(UserError, match=r"768 \(Stable Diffusion v1\).* 1024 \(Stable Diffusion v2\)"):
        check_width(word(d=768), 1024)
    with pytest.raises(UserError, match=r"768 \+ 1280 \(SDXL\).* 768 \(Stable"):
        check_width(pair(), 768)
    with pytest.raises(UserError, match=r"'a' has width 768 \(Stable.*'b' has width 1280 \(LDM"):
        save_embeddings([word("a", d=768), word("b", d=1280)], tmp_path / "x.safetensors")


def test_our_notes_are_kept_in_every_safetensors_layout(tmp_path):
    for format in ("diffusers", "kohya", "onetrainer"):
        path = write(word("é b", init="cat toy"), tmp_path, format)
        assert load_embedding(path).metadata == NOTES | {"init": "cat toy"}
        with safe_open(path, "pt") as handle:
            notes = json.loads(handle.metadata()["embeddings"])["é b"]
        assert (notes["K"], notes["D"], notes["placeholder"]) == ("2", "8", "é b")
