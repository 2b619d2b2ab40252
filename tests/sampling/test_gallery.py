"""A folder of pictures: which are missing, drawing those, and drawing a recipe again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.io.images import save_png
from ldm.io.recipes import Edit, load_recipe, to_text
from ldm.sampling import gallery
from ldm.sampling.sample import BrokenPictures, Sampling

pytestmark = pytest.mark.slow

QUICK = Sampling(steps=1, scale=1.0)


@pytest.fixture
def word(tiny_model: LatentDiffusion) -> Embedding:
    """A word that the model knows, as ``prompts.load`` returns one."""
    vectors = torch.ones(1, tiny_model.text.width)
    tiny_model.add_placeholder("<toy>", vectors)
    return Embedding("<toy>", vectors, {"file": "toy.safetensors", "sha256": "ab"})


def two_of(model: LatentDiffusion, out: Path, **more: object) -> list[gallery.Wanted]:
    return gallery.plan(model, ["a cat"], out, **{"n": 2, "sampling": QUICK, **more})


def test_a_plan_has_every_prompt_seed_and_index_and_writes_nothing(tiny_model, word, tmp_path):
    wanted = gallery.plan(
        tiny_model,
        ["a {}", "a cat"],
        tmp_path / "out",
        learned=[word],
        negative_prompt="a dog",
        seeds=[7, 3],
        n=2,
        sampling=Sampling(steps=3, sampler="plms", scale=2),
        model_name="somewhere/tiny",
    )
    assert [one.path.name for one in wanted] == [
        *(f"00_a-toy_{seed}_0{i}.png" for seed in (7, 3) for i in (0, 1)),
        *(f"01_a-cat_{seed}_0{i}.png" for seed in (7, 3) for i in (0, 1)),
    ]
    first, last = wanted[0].recipe, wanted[-1].recipe
    assert (first.prompt, first.negative_prompt, first.seed, first.index) == ("a <toy>", "a dog", 7, 0)
    assert (first.steps, first.sampler, first.scale, first.size) == (3, "plms", 2.0, 16)
    assert (first.model, first.base_model) == ("tiny", tiny_model.fingerprint())
    assert first.embeddings == (word,) and last.embeddings == ()
    assert not (tmp_path / "out").exists()


def test_a_plan_without_sampling_suits_the_model(tiny_model, tmp_path):
    (one,) = gallery.plan(tiny_model, ["a cat"], tmp_path, n=1)
    how = Sampling.of(tiny_model)
    assert (one.recipe.steps, one.recipe.sampler, one.recipe.scale) == (how.steps, how.sampler, how.scale)


def test_a_word_of_the_description_of_an_edit_belongs_to_the_recipe(tiny_model, word, tmp_path):
    edit = Edit("photo.png", "cd", invert="a photo of <toy>")
    (one,) = two_of(tiny_model, tmp_path, n=1, learned=[word], edit=edit)
    assert one.recipe.embeddings == (word,) and one.recipe.edit == edit


def test_a_plan_refuses_too_many_pictures_and_words_that_nothing_uses(tiny_model, word, tmp_path):
    with pytest.raises(UserError, match="draw fewer at once"):
        two_of(tiny_model, tmp_path, seeds=range(gallery.MAX_PICTURES))
    with pytest.raises(UserError, match="no prompt uses the learned word"):
        two_of(tiny_model, tmp_path, learned=[word])
    with pytest.raises(UserError, match="does not say which word"):
        gallery.plan(tiny_model, ["a {}"], tmp_path)


def test_only_what_is_missing_is_drawn(tiny_model, tmp_path):
    wanted = two_of(tiny_model, tmp_path, n=3)
    assert gallery.missing(wanted) == wanted
    assert gallery.draw_into(tiny_model, wanted, grid=tmp_path / "grid.png", columns=2) == 0
    assert gallery.missing(wanted) == []
    assert Image.open(tmp_path / "grid.png").size == (2 * 18 + 2, 2 * 18 + 2)
    before = wanted[1].path.read_bytes()
    wanted[0].path.write_bytes(b"half a picture")
    wanted[1].path.write_bytes(before[:-60])  # its recipe is whole, its pixels are not
    assert gallery.missing(wanted) == wanted[:2]
    assert gallery.draw_into(tiny_model, wanted) == 1
    other = two_of(tiny_model, tmp_path, n=3, sampling=Sampling(steps=2, scale=1.0))
    assert gallery.missing(other) == other


def test_every_picture_says_where_in_which_batch_it_was_drawn(tiny_model, tmp_path):
    wanted = two_of(tiny_model, tmp_path, n=3)
    gallery.draw_into(tiny_model, wanted, batch_size=2)
    recipes = [load_recipe(one.path) for one in wanted]
    assert [(r.batch_row, r.batch_rows) for r in recipes] == [(0, 2), (1, 2), (0, 1)]
    assert all(r.same_picture(one.recipe) for r, one in zip(recipes, wanted, strict=True))


def test_pictures_of_nothing_but_overflow_are_named_and_the_others_written(tiny_model, tmp_path, monkeypatch):
    def broken(model, prompts, **_):
        raise BrokenPictures("1 of 2 pictures", torch.zeros(len(prompts), 3, 16, 16), [0])

    monkeypatch.setattr(gallery, "sample", broken)
    wanted = two_of(tiny_model, tmp_path)
    with pytest.raises(UserError, match="1 pictures are not in .*, 1 are"):
        gallery.draw_into(tiny_model, wanted, grid=tmp_path / "grid.png")
    assert [one.path.is_file() for one in wanted] == [False, True]
    assert Image.open(tmp_path / "grid.png").size == (20, 20)


def test_a_grid_has_a_row_a_prompt(tiny_model, tmp_path):
    wanted = gallery.plan(tiny_model, ["a cat", "a dog"], tmp_path, n=3, sampling=QUICK)
    gallery.draw_into(tiny_model, wanted)
    path = gallery.write_grid(wanted, tmp_path / "grid.png")
    assert Image.open(path).size == (3 * 18 + 2, 2 * 18 + 2)


def test_a_picture_is_drawn_again_bit_for_bit(tiny_model, tmp_path):
    wanted = two_of(tiny_model, tmp_path, n=3, eta=0.5)
    gallery.draw_into(tiny_model, wanted)
    path = wanted[2].path
    again = gallery.draw_again(tiny_model, load_recipe(path), tmp_path / "again.png")
    assert Image.open(again).tobytes() == Image.open(path).tobytes()
    assert to_text(load_recipe(again)) == to_text(load_recipe(path))


def test_a_recipe_of_many_pictures_draws_no_more_at_once_than_usual(
    tiny_model, tmp_path, monkeypatch, caplog
):
    (one,) = two_of(tiny_model, tmp_path, n=1)
    recipe = replace(one.recipe, batch_row=1000, batch_rows=1024)
    drawn = []

    def counted(model, prompts, **_):
        drawn.append(len(prompts))
        return torch.zeros(len(prompts), 3, 16, 16)

    monkeypatch.setattr(gallery, "sample", counted)
    for size, rows in ((None, 64), (3, 3), (100, 100)):
        path = gallery.draw_again(tiny_model, recipe, tmp_path / f"{rows}.png", batch_size=size)
        assert drawn.pop() == rows and "a batch size of 1024 draws it as it was" in caplog.text
        assert to_text(load_recipe(path)) == to_text(recipe)


def test_a_recipe_of_another_size_is_refused(tiny_model, tmp_path):
    (one,) = two_of(tiny_model, tmp_path, n=1)
    with pytest.raises(UserError, match="512 pixels, not 16"):
        gallery.draw_again(tiny_model, replace(one.recipe, size=512), tmp_path / "again.png")


def test_the_model_of_a_recipe_is_proved_by_its_fingerprint(tiny_model, tmp_path, monkeypatch):
    (one,) = two_of(tiny_model, tmp_path, n=1)
    monkeypatch.setattr(gallery, "load", lambda *_: tiny_model)
    assert gallery.model_of(one.recipe) is tiny_model  # "emoji" comes with the program
    with pytest.raises(UserError, match="another model"):
        gallery.model_of(replace(one.recipe, base_model="0" * 64))
    foreign = replace(one.recipe, model=str(tmp_path))
    with pytest.raises(UserError, match="give it by --model"):
        gallery.model_of(foreign)  # a name in a picture is never a path
    assert gallery.model_of(foreign, "tiny") is tiny_model


def test_a_picture_of_another_program_is_missing(tiny_model, tmp_path):
    (one,) = two_of(tiny_model, tmp_path, n=1)
    save_png(torch.zeros(3, 16, 16), one.path)
    assert gallery.missing([one]) == [one]
