"""``ldm edit``: three ways to draw from a picture, the way back by --again, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.io.recipes import load_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White on the left half, of another size than the photo."""
    picture = Image.new("L", (80, 40))
    picture.paste(255, (0, 0, 40, 40))
    picture.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def edit(cli, model_folder, photo):
    def run(*words: object):
        return cli("edit", "--model", model_folder, "--image", photo, "--steps", 4, "--out", "out", *words)

    return run


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def square(photo: Path) -> np.ndarray:
    box = (10, 0, 30, 20)
    return np.asarray(Image.open(photo).resize((16, 16), Image.Resampling.BICUBIC, box=box))


def test_a_little_strength_stays_nearer_to_the_picture(edit, photo, embedding):
    distances = []
    for strength in (0.25, 1):
        words = ("--prompt", "a {}", "--embedding", embedding, "--strength", strength, "--n", 2)
        result = edit(*words, "--out", f"out{strength}")
        assert result.code == 0, result.err
        drawn = [pixels(p) for p in sorted(Path(f"out{strength}").glob("00_*.png"))]
        assert len(drawn) == 2 and not np.array_equal(*drawn)
        distances.append(np.abs(drawn[0].astype(float) - square(photo)).mean())
    assert distances[0] < distances[1]
    recipe = load_recipe(Path("out0.25/00_a-toy_0_00.png"))
    assert recipe.edit and recipe.edit.image == "photo.png" and recipe.edit.strength == 0.25


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm++"])
def test_black_of_the_mask_keeps_the_pictures_own_pixels(edit, photo, mask, sampler):
    result = edit("--prompt", "a cat", "--mask", mask, "--n", 1, "--sampler", sampler)
    assert result.code == 0, result.err
    drawn, source = pixels("out/00_a-cat_0_00.png"), square(photo)
    assert np.array_equal(drawn[:, 9:], source[:, 9:])
    assert np.abs(drawn[:, :7].astype(float) - source[:, :7]).mean() > 10


def test_without_kept_pixels_the_rest_passes_through_the_autoencoder(edit, photo, mask):
    assert edit("--prompt", "a cat", "--mask", mask, "--n", 1, "--no-keep-pixels").code == 0
    assert not np.array_equal(pixels("out/00_a-cat_0_00.png")[:, 9:], square(photo)[:, 9:])


def test_inversion_draws_one_picture_that_is_the_photos_own(edit, photo):
    assert edit("--invert", "a cat", "--prompt", "a red dog").code == 0
    assert len(list(Path("out").glob("00_*.png"))) == 1
    other = photo.with_name("other.png")
    Image.new("RGB", (16, 16), "blue").save(other)
    assert edit("--invert", "a cat", "--prompt", "a red dog", "--image", other, "--out", "b").code == 0
    assert not np.array_equal(pixels("out/00_a-red-dog_0_00.png"), pixels("b/00_a-red-dog_0_00.png"))


@pytest.mark.parametrize("how", ["strength", "mask", "invert"])
def test_an_edited_picture_is_drawn_again_bit_for_bit(cli, edit, model_folder, photo, mask, embedding, how):
    ways = {"strength": ("--n", 3, "--strength", 0.5, "--eta", 1, "--fit", "pad"),
            "mask": ("--n", 2, "--mask", mask), "invert": ("--invert", "a {}")}  # fmt: skip
    assert edit("--embedding", embedding, "--prompt", "a {} on snow", *ways[how]).code == 0
    embedding.unlink()
    drawn = sorted(Path("out").glob("00_*.png"))[-1]
    words = ["edit", "--again", drawn, "--model", model_folder, "--out", "again", "--image", photo]
    words += ["--mask", mask] if how == "mask" else []
    result = cli(*words)
    assert result.code == 0, result.err
    assert np.array_equal(pixels(Path("again") / drawn.name), pixels(drawn))


def test_again_wants_the_very_same_files(cli, edit, model_folder, photo, mask):
    assert edit("--prompt", "a cat", "--mask", mask, "--n", 1).code == 0
    drawn = "out/00_a-cat_0_00.png"

    def refused(*words: object) -> str:
        result = cli(*words, "--model", model_folder, "--out", "again")
        assert result.code == 2 and result.err.count("\n") == 1 and not Path("again").exists()
        return result.err

    assert f"ldm edit --again {drawn} --image" in refused("sample", "--again", drawn)
    again = ("edit", "--again", drawn, "--image", photo)
    assert "give the mask 'mask.png'" in refused(*again)
    assert "is not the file 'mask.png'" in refused(*again, "--mask", photo)
    assert "leave out --strength" in refused(*again, "--mask", mask, "--strength", 0.5)
    words = ["sample", "--model", model_folder, "--prompt", "a", "--n", 1, "--steps", 1, "--out", "s"]
    assert cli(*words).code == 0
    assert "ldm sample --again" in refused("edit", "--again", "s/00_a_0_00.png", "--image", photo)


@pytest.mark.parametrize(("words", "says"), [
    (["--strength", 0], "strength"), (["--strength", 1.5], "strength"), (["--strength", "nan"], "strength"),
    (["--keep-pixels"], "--mask"), (["--image", "none.png"], "there is no picture"),
    (["--image", "tiny/config.yaml"], "cannot decode"), (["--mask", "none.png"], "there is no picture"),
    (["--mask", "black.png"], "nothing white"), (["--invert", "a", "--mask", "black.png"], "--mask"),
    (["--invert", "a", "--strength", 0.5], "--strength"), (["--invert", "a", "--n", 3], "--n"),
    (["--invert", "a", "--sampler", "plms"], "--sampler"), (["--background", "mauvish"], "background"),
], ids=str)  # fmt: skip
def test_what_does_not_go_together_is_one_line_and_leaves_nothing(edit, tmp_path, words, says):
    Image.new("L", (20, 20)).save(tmp_path / "black.png")
    result = edit("--prompt", "a cat", *words)
    assert result.code == 2 and result.err.startswith("ldm: error: "), result.err
    assert says in result.err and result.err.count("\n") == 1 and not Path("out").exists()
