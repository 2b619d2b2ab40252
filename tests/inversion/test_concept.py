"""Concept folders: any size, mode and orientation; what is no picture; what is broken."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.inversion.concept import concept_of
from ldm.io.atomic import file_sha256
from ldm.io.decode import SUFFIXES
from ldm.io.pictures import Framing, list_pictures, load_picture, load_pil

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def rgb(image: torch.Tensor, y: int, x: int) -> list[int]:
    return ((image[:, y, x] + 1) * 127.5).round().int().tolist()


def near(a, b, by: int = 2) -> bool:
    return max(abs(int(x) - int(y)) for x, y in zip(a, b, strict=True)) <= by


def quarters(width: int = 40, height: int = 40) -> Image.Image:
    """Red, green / blue, white by quarters: shows every turn and mirror."""
    image = Image.new("RGB", (width, height), "white")
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def test_a_folder_gives_images_in_range_with_paths_and_hashes_sorted(tmp_path):
    for name in ("c.png", "a.jpg", "B.webp"):
        quarters(30, 50).save(tmp_path / name)
    concept = concept_of(tmp_path, 16)
    assert concept.images.shape == (3, 3, 16, 16) and concept.images.dtype == torch.float32
    assert concept.images.min() >= -1 and concept.images.max() <= 1 and len(concept) == 3
    assert [p.name for p in concept.paths] == ["B.webp", "a.jpg", "c.png"]
    assert concept.image_hashes["a.jpg"] == file_sha256(tmp_path / "a.jpg")


def test_pixel_values_are_exact_where_nothing_is_scaled(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    back = ((load_picture(tmp_path / "a.png", 8) + 1) * 127.5).round().permute(1, 2, 0)
    assert np.array_equal(back.numpy().astype(np.uint8), values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_exif_orientation_is_turned_upright(tmp_path, orientation, suffix):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters(40, 60)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    image = load_picture(tmp_path / f"a.{suffix}", 20)
    for y, x, colour in ((3, 3, RED), (3, 16, GREEN), (16, 3, BLUE), (16, 16, (255,) * 3)):
        assert near(rgb(image, y, x), colour, 12), (y, x)


@pytest.mark.parametrize("size", [(90, 30), (30, 90), (300, 100), (9, 3), (33, 11)])
def test_the_aspect_is_kept_by_a_centre_crop(tmp_path, size):
    image = Image.new("RGB", size, RED)
    width, height = size
    side = min(size)  # the middle square is green, what a crop must drop is red
    left, top = (width - side) // 2, (height - side) // 2
    image.paste(GREEN, (left, top, left + side, top + side))
    image.save(tmp_path / "a.png")
    found = load_picture(tmp_path / "a.png", 16)
    # a squash would show red at 4 and 11; at the very edge bicubic may look beyond the crop
    assert all(near(rgb(found, y, x), GREEN, 40) for y in (4, 8, 11) for x in (4, 8, 11))


def test_padding_keeps_everything_and_fills_with_the_background(tmp_path):
    Image.new("RGB", (40, 20), RED).save(tmp_path / "a.png")
    found = load_picture(tmp_path / "a.png", 16, Framing(fit="pad", background="blue"))
    assert near(rgb(found, 1, 8), BLUE) and near(rgb(found, 14, 8), BLUE)
    assert near(rgb(found, 8, 0), RED) and near(rgb(found, 8, 15), RED)


def test_downscaling_is_antialiased(tmp_path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert load_picture(tmp_path / "a.png", 16).abs().max() < 0.05


@pytest.mark.parametrize("filter", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_pictures_are_scaled_by_the_filter_that_is_asked_for(tmp_path, filter, fit):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    expected = Image.fromarray(noise).resize((10, 10), Image.Resampling[filter.upper()])
    found = load_picture(tmp_path / "a.png", 10, Framing(fit=fit, interpolation=filter))
    pixels = ((found + 1) * 127.5).round().byte().permute(1, 2, 0)
    assert pixels.equal(torch.tensor(np.array(expected)))


@pytest.mark.parametrize(
    "mode, colour",
    [
        ("RGB", RED),
        ("RGBA", (*RED, 255)),
        ("L", 100),
        ("LA", (100, 255)),
        ("1", 1),
        ("CMYK", (0, 255, 255, 0)),
        ("YCbCr", (76, 85, 255)),
        ("P", 1),
        ("I;16", 100 * 257),
        ("I", 100 * 257),
        ("F", 100 / 255),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, colour):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, *RED])
    path = tmp_path / f"a.{'tif' if mode in ('CMYK', 'YCbCr', 'F', 'I') else 'png'}"
    image.save(path)
    if mode in ("I", "F"):  # a single pixel sets the scale of what has none recorded
        assert Image.open(path).mode == mode
    expected = (
        RED if mode in ("RGB", "RGBA", "CMYK", "YCbCr", "P") else (255,) * 3 if mode == "1" else (100,) * 3
    )
    if mode == "F":
        expected = (100,) * 3
    assert near(rgb(load_picture(path, 8), 4, 4), expected)


def test_16_bit_greys_keep_their_range_instead_of_being_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    row = load_picture(tmp_path / "a.png", 64)[0, 0]
    assert torch.allclose(row, torch.linspace(-1, 1, 64), atol=0.01)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "gif", "key"])
def test_transparency_is_laid_on_the_background(tmp_path, kind):
    path = tmp_path / ("a.gif" if kind == "gif" else "a.png")
    if kind in ("P", "gif"):
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*GREEN, *RED])
        image.save(path, transparency=0)
    elif kind == "key":
        Image.new("RGB", (8, 8), GREEN).save(path, transparency=GREEN)
    else:
        Image.new(kind, (8, 8), 0).save(path)
    assert near(rgb(load_picture(path, 8), 4, 4), (255,) * 3)
    assert near(rgb(load_picture(path, 8, Framing(background="#0000ff")), 4, 4), BLUE)


def test_half_transparency_is_mixed(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert near(rgb(load_picture(tmp_path / "a.png", 8), 4, 4), (255, 127, 127))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, GREEN)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert near(rgb(load_picture(tmp_path / f"a.{suffix}", 8), 4, 4), RED, 12)


def test_pictures_in_memory_are_treated_alike(tmp_path):
    image = quarters(40, 60).convert("RGBA")
    image.save(tmp_path / "a.png")
    assert torch.equal(load_pil([image], 16)[0], load_picture(tmp_path / "a.png", 16))


def test_what_a_file_is_decides_its_content_not_its_name(tmp_path):
    quarters().save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPG")
    assert len(concept_of(tmp_path, 8)) == 1


# ------------------------------------------------------------------------- other files
def test_other_files_are_skipped_with_a_warning_and_captions_and_hidden_ones_without(tmp_path, caplog):
    quarters().save(tmp_path / "a.png")
    for name in ("a.txt", ".DS_Store", "b.txt", "photo.dng", "notes.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "sub.png").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [p.name for p in list_pictures(tmp_path)] == ["a.png"]
    said = [Path(r.args[0]).name for r in caplog.records]
    assert said == ["b.txt", "notes.md", "photo.dng", "sub.png"]


@pytest.mark.parametrize("content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_corrupt_picture_is_named_with_what_to_do(tmp_path, content):
    quarters().save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match="bad.png.*remove or replace") as caught:
        concept_of(tmp_path, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_a_picture_cut_short_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"bad.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="bad.*remove or replace"):
        concept_of(tmp_path, 8)


def test_no_pictures_no_folder_and_a_file_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no pictures in"):
        concept_of(tmp_path, 8)
    with pytest.raises(UserError, match="there is no folder"):
        concept_of(tmp_path / "none", 8)
    quarters().save(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a file"):
        list_pictures(tmp_path / "a.png")
    with pytest.raises(UserError, match="there is no picture"):
        load_picture(tmp_path / "none.png", 8)


@pytest.mark.parametrize(
    "wrong", [{"background": "rde"}, {"fit": "stretch"}, {"size": 0}, {"interpolation": "nearest"}]
)
def test_wrong_options_are_user_errors(tmp_path, wrong):
    quarters().save(tmp_path / "a.png")
    with pytest.raises(UserError):
        concept_of(tmp_path, wrong.pop("size", 8), Framing(**wrong))


def test_every_suffix_that_is_taken_has_a_decoder():
    Image.init()
    known = Image.registered_extensions()
    assert all(known[suffix] in Image.OPEN for suffix in SUFFIXES)
