"""Where a learned word may stand in ``ldm sample``, ``ldm edit`` and ``ldm.sample``: in any prompt."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ldm
from ldm.io.embeddings import Embedding, load_embedding, save_embeddings
from ldm.io.recipes import load_recipe

pytestmark = pytest.mark.slow

START = {
    "sample": (),
    "strength": ("--image", "photo.png", "--strength", 0.7),
    "mask": ("--image", "photo.png", "--mask", "mask.png"),
    "invert": ("--image", "photo.png", "--invert", "a photo of a dog"),
}


@pytest.fixture
def draw(cli, model_folder):
    """``draw(start, *words)`` draws one picture a prompt into ``out``."""
    Image.radial_gradient("L").convert("RGB").save("photo.png")
    Image.new("L", (16, 16), "white").save("mask.png")

    def run(start: str, *words: object):
        command = "sample" if start == "sample" else "edit"
        n = () if start == "invert" else ("--n", 1)
        return cli(command, "--model", model_folder, *START[start], *n, "--steps", 2, "--out", "out", *words)

    return run


def drawn(prompt_number: int = 0) -> Path:
    (path,) = Path("out").glob(f"{prompt_number:02d}_*.png")
    return path


@pytest.fixture
def unnamed(embedding, tmp_path):
    """The same vectors in a file without a name, as most shared words for negative prompts are."""
    save_file({"emb_params": load_embedding(embedding).vectors}, tmp_path / "bad-hands.safetensors")
    return tmp_path / "bad-hands.safetensors"


@pytest.mark.parametrize("negative", ["{}", "ugly, bad-hands"])
@pytest.mark.parametrize("start", START)
def test_a_word_of_the_negative_prompt_alone_is_used(draw, unnamed, start, negative):
    words = ("--embedding", unnamed, "--prompt", "a photo of a cat", "--scale", 3)
    result = draw(start, *words, "--negative-prompt", negative)
    assert result.code == 0, result.err
    recipe = load_recipe(drawn())
    assert recipe.negative_prompt == negative.format("bad-hands")
    assert [word.placeholder for word in recipe.embeddings] == ["bad-hands"]
    pixels = Image.open(drawn()).tobytes()
    drawn().unlink()
    assert draw(start, "--prompt", "a photo of a cat", "--scale", 3).code == 0
    assert pixels != Image.open(drawn()).tobytes()


@pytest.mark.parametrize("start", START)
def test_a_grid_shows_prompts_with_the_word_and_without(draw, embedding, start):
    result = draw(start, "--embedding", embedding, "--prompt", "a photo of a cat", "--prompt", "a {}")
    assert result.code == 0, result.err
    assert load_recipe(drawn(0)).embeddings == ()
    assert [word.placeholder for word in load_recipe(drawn(1)).embeddings] == ["<toy>"]


def test_a_word_of_the_description_of_an_inversion_alone_is_used(draw, embedding):
    words = ("--embedding", embedding, "--prompt", "a cat", "--invert", "a photo of {}")
    result = draw("invert", *words)
    assert result.code == 0, result.err
    assert load_recipe(drawn()).edit.invert == "a photo of <toy>"


@pytest.mark.parametrize("layers", [False, True])
def test_a_word_of_the_negative_prompt_alone_is_used_by_the_api(tiny_model, embedding, layers):
    vectors = load_embedding(embedding).vectors
    if layers:
        n = tiny_model.unet.num_transformers
        vectors = torch.stack([vectors * (i + 1) for i in range(n)])
    tiny_model.add_placeholder("<toy>", vectors, word="per_layer" if layers else "plain")
    options = {"steps": 2, "seed": 0, "scale": 3.0}
    plain = ldm.sample(tiny_model, ["a cat", "a dog"], **options)
    away = ldm.sample(tiny_model, ["a cat", "a dog"], negative_prompt="<toy>", **options)
    assert away.isfinite().all() and not torch.equal(plain, away)


@pytest.mark.parametrize("option", ["--prompt", "--negative-prompt", "--invert"])
@pytest.mark.parametrize("files", [0, 2])
def test_a_slot_that_stands_for_no_one_word_is_refused_in_every_prompt(draw, embedding, option, files):
    box = Embedding("<box>", torch.ones(1, load_embedding(embedding).D))
    box_file = save_embeddings(box, embedding.with_name("box.safetensors"))
    known = ("--embedding", embedding, box_file) if files else ()
    result = draw("invert", *known, "--prompt", "a cat", option, "a {} on snow")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "does not say which word" in result.err and not Path("out").exists()


@pytest.mark.parametrize("start", START)
def test_words_that_no_prompt_uses_are_refused_or_said(draw, embedding, unnamed, start):
    result = draw(start, "--embedding", embedding, "--prompt", "a cat", "--negative-prompt", "toy")
    assert result.code == 2 and "no prompt uses the learned word" in result.err and "<toy>" in result.err
    assert not Path("out").exists()
    result = draw(start, "--embedding", embedding, unnamed, "--prompt", "a <toy>")
    assert result.code == 0 and "no prompt uses bad-hands, the word of bad-hands.safetensors" in result.err


def test_a_negative_prompt_without_effect_is_said(draw):
    result = draw("sample", "--prompt", "a cat", "--negative-prompt", "a dog", "--scale", 1)
    assert result.code == 0 and "no effect at scale 1" in result.err
