"""Recipes in PNG files: everything comes back, and nothing that a stranger wrote does harm."""

import base64
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.io.images import save_png
from ldm.io.recipes import Edit, Recipe, has_recipe, load_recipe, png_text, to_text

VECTORS = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
WORD = Embedding("<toy> 🧸", VECTORS, {"file": "toy.safetensors", "sha256": "ab" * 32, "step": "7"})
EDIT = Edit("photo.jpg", "01" * 32, "mask.png", "23" * 32, 0.7, False, "a cat", "pad", "#ff0000")
RECIPE = Recipe(
    prompt='a photo of <toy> 🧸,\n"quoted"', negative_prompt="dull", seed=2**70, index=3, sampler="ddim",
    steps=50, scale=1 / 3, eta=0.1, size=8, model="emoji", base_model="cd" * 32, version="ldm 0.1.0",
    batch_row=2, batch_rows=4, embeddings=(WORD,), edit=EDIT,
)  # fmt: skip


def write(path: Path, text: dict[str, str]) -> Path:
    return save_png(Image.new("RGB", (8, 8), "red"), path, text)


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return write(tmp_path / "a.png", to_text(RECIPE))


def test_every_value_comes_back_from_the_png_to_the_last_bit(png: Path) -> None:
    found = load_recipe(png)
    assert has_recipe(png) and to_text(found) == to_text(RECIPE) and found.edit == EDIT
    (word,) = found.embeddings
    assert word.placeholder == "<toy> 🧸" and torch.equal(word.vectors, VECTORS)
    assert word.metadata == {"file": "toy.safetensors", "sha256": "ab" * 32}


def test_a_word_with_vectors_for_each_layer_comes_back(tmp_path: Path) -> None:
    word = Embedding("<toy>", torch.randn(4, 2, 5), WORD.metadata)
    path = write(tmp_path / "layers.png", to_text(replace(RECIPE, embeddings=(word,))))
    assert torch.equal(load_recipe(path).embeddings[0].vectors, word.vectors)


def test_what_versions_before_would_ignore_makes_a_recipe_of_a_newer_form(tmp_path: Path) -> None:
    for change, form in (
        ({}, "1"),
        ({"clip_skip": 2}, "2"),
        ({"precision": "bf16"}, "3"),
        ({"truncate": 8}, "4"),
    ):
        recipe = replace(RECIPE, **change)
        found = load_recipe(write(tmp_path / f"{form}.png", to_text(recipe)))
        assert to_text(recipe)["recipe"] == form and found.same_picture(recipe)
    both = replace(RECIPE, clip_skip=2, precision="bf16")
    for more, kept in ((both, None), (replace(both, truncate=0), 0)):
        found = load_recipe(write(tmp_path / "both.png", to_text(more)))
        assert (found.clip_skip, found.precision, found.truncate) == (2, "bf16", kept)
    text = {**to_text(both), "precision": "4"}
    with pytest.raises(UserError, match="broken"):
        load_recipe(write(tmp_path / "unknown.png", text))


def test_it_can_be_read_with_the_eye(png: Path) -> None:
    text = Image.open(png).text
    assert text["prompt"] == RECIPE.prompt and text["Software"] == "ldm 0.1.0"
    assert (text["steps"], text["sampler"], text["index"]) == ("50", "ddim", "3")


def test_the_same_picture_does_not_depend_on_what_was_drawn_beside_it() -> None:
    values = {**vars(RECIPE), "batch_row": 0, "batch_rows": 1, "version": "ldm 9"}
    assert Recipe(**values).same_picture(RECIPE)
    other = Embedding(WORD.placeholder, VECTORS + 1e-6, WORD.metadata)
    for change in (
        {"scale": 2.0},
        {"seed": 1},
        {"edit": None},
        {"embeddings": (other,)},
        {"precision": "16"},
        {"truncate": 3},
    ):
        assert not Recipe(**{**values, **change}).same_picture(RECIPE)


def test_a_picture_of_another_program_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "b.png", {"prompt": "a cat"})
    assert not has_recipe(path)
    with pytest.raises(UserError, match="does not say how it was drawn"):
        load_recipe(path)
    (tmp_path / "no.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.jpg")
    for name in ("no.png", "c.jpg"):
        assert not has_recipe(tmp_path / name)
        with pytest.raises(UserError, match="no PNG picture"):
            load_recipe(tmp_path / name)
    with pytest.raises(UserError, match="check the path"):
        load_recipe(tmp_path / "none.png")


def word(**values: object) -> str:
    data = base64.b64encode(bytes(8)).decode()
    return json.dumps([{"name": "x", "file": "", "sha256": "", "K": 1, "D": 2, "float32": data, **values}])


@pytest.mark.parametrize(("key", "value"), [
    ("seed", "one"), ("seed", "9" * 10_000), ("steps", ""), ("scale", "nan"), ("eta", "inf"),
    ("batch_rows", "1000000000"), ("batch_row", "4"), ("batch_row", "-1"), ("prompt", None),
    ("recipe", "2"), ("recipe", "3"), ("recipe", "4"), ("edit", "[]"), ("edit", "{}"),
    ("embeddings", "{"), ("embeddings", "5"),
    ("embeddings", "[" * 100_000), ("embeddings", word(K=10**9)), ("embeddings", word(K=-1, D=-2)),
    ("embeddings", word(float32="!!")), ("embeddings", word(float32="AAAA")), ("embeddings", word(K="1")),
    ("embeddings", word(float32=base64.b64encode(b"\xff" * 8).decode())), ("embeddings", word(name=" ")),
], ids=lambda v: str(v)[:30])  # fmt: skip
def test_a_broken_value_is_one_line(tmp_path: Path, key: str, value: str | None) -> None:
    text = {**to_text(RECIPE), key: value}
    path = write(tmp_path / "a.png", {k: v for k, v in text.items() if v is not None})
    with pytest.raises(UserError, match=r"a\.png") as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_flipped_bytes_and_cuts_are_one_line_or_change_nothing(png: Path) -> None:
    whole = png.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for case in range(400):
        broken = bytearray(whole)
        at = int(torch.randint(len(whole), (), generator=generator))
        if case % 2:
            broken[at] ^= 1 << (case // 2 % 8)
        else:
            del broken[at:]
        png.write_bytes(broken)
        try:
            assert to_text(load_recipe(png)) == to_text(RECIPE)  # what broke was the pixels
        except UserError as error:
            assert "\n" not in str(error)


def test_a_chunk_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    packer = zlib.compressobj()
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(40)) + packer.flush()
    bomb = chunk(b"iTXt", b"embeddings\0\1\0\0\0" + packed)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + bomb + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    try:
        assert sum(map(len, png_text(path).values())) < 1 << 22
    except UserError as error:
        assert "broken" in str(error)
