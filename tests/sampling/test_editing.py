"""What a recipe says of the picture that others are made from, and what drawing starts from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.io.atomic import file_sha256
from ldm.io.embeddings import Embedding
from ldm.sampling import editing, gallery
from ldm.sampling.sample import Sampling
from ldm.sampling.source import load_source

pytestmark = pytest.mark.slow


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    Image.new("L", (16, 16), "white").save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_a_recipe_names_the_files_by_their_hashes(tiny_model, photo, mask):
    source = load_source(tiny_model, photo, mask=mask, keep_pixels=False)
    edit = editing.edit_of(source, photo, mask, fit="pad", background="black")
    assert (edit.image, edit.mask) == ("photo.png", "mask.png")
    assert (edit.image_sha256, edit.mask_sha256) == (file_sha256(photo), file_sha256(mask))
    assert (edit.strength, edit.keep_pixels, edit.fit, edit.background) == (1.0, False, "pad", "black")
    editing.check_files(edit, photo, mask)
    for image, other, message in (
        (photo, None, "give the mask 'mask.png'"),
        (mask, mask, "is not the file 'photo.png'"),
        (photo, photo, "is not the file 'mask.png'"),
    ):
        with pytest.raises(UserError, match=message):
            editing.check_files(edit, image, other)
    with pytest.raises(UserError, match="leave out --mask"):
        editing.check_files(replace(edit, mask="", mask_sha256=""), photo, mask)


def test_the_word_may_stand_in_what_the_picture_shows(tiny_model, photo):
    source = load_source(tiny_model, photo)
    word = Embedding("<toy>", torch.ones(1, 32))
    assert editing.edit_of(source, photo, invert="a {}", learned=[word]).invert == "a <toy>"
    with pytest.raises(UserError, match="does not say which word"):
        editing.edit_of(source, photo, invert="a {}")


def test_drawing_starts_from_the_picture_or_from_the_noise_behind_it(tiny_model, photo, tmp_path):
    source = load_source(tiny_model, photo)

    def recipe_of(invert: str | None):
        edit = editing.edit_of(source, photo, invert=invert)
        how = Sampling(steps=2, scale=1.0)
        return gallery.plan(tiny_model, ["a cat"], tmp_path, n=1, sampling=how, edit=edit)[0].recipe

    assert editing.start(tiny_model, source, recipe_of(None)) == (source, None)
    nothing, x_T = editing.start(tiny_model, source, recipe_of("a photo"))
    assert nothing is None and x_T is not None and x_T.shape == (1, *tiny_model.latent_shape)
