"""Masks beside pictures and in their alpha channel: framed as the picture is, and never mistaken."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.inversion.concept import Concept, concept_of
from ldm.io.pictures import Framing, list_pictures

FILES = Framing(mask="file", background="black")
UNDO = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def shape(width: int = 40, height: int = 24) -> Image.Image:
    """White on black, off the middle, soft at one edge: a picture that is its own mask."""
    image = Image.new("L", (width, height))
    image.paste(255, (width // 2, 2, width - 5, height // 2))
    image.paste(120, (width // 2, height // 2, width - 5, height // 2 + 3))
    return image


def save(folder: Path, *names: str) -> None:
    for name in names:
        shape().save(folder / name)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_mask_is_framed_exactly_as_its_picture(tmp_path: Path, fit: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = shape().transpose(UNDO[orientation]) if orientation in UNDO else shape()
    stored.save(tmp_path / "a.png", exif=exif)
    shape().save(tmp_path / "a.mask.png")  # as it is looked at, and without a note on its orientation
    concept = concept_of(tmp_path, 16, Framing(fit=fit, background="black", mask="file"))
    assert len(concept) == 1 and concept.masks is not None and concept.masks.shape == (1, 1, 16, 16)
    torch.testing.assert_close(2 * concept.masks - 1, concept.images[:, :1], rtol=0, atol=1e-6)
    assert 0 < concept.masks.mean() < 0.5 and list(concept.mask_hashes) == ["a.mask.png"]


def test_without_turning_a_mask_lies_as_the_picture_is_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    shape().save(tmp_path / "a.png", exif=exif)
    shape().save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match="has 40 x 24 pixels, and a.png has 24 x 40"):
        concept_of(tmp_path, 16, FILES)
    concept = concept_of(tmp_path, 16, Framing(mask="file", upright=False))
    assert concept.masks is not None
    torch.testing.assert_close(2 * concept.masks - 1, concept.images[:, :1], rtol=0, atol=1e-6)


def test_a_smaller_mask_of_the_same_shape_lies_over_the_same_place(tmp_path: Path) -> None:
    shape().resize((400, 240), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=95)
    save(tmp_path, "a.mask.png")
    concept = concept_of(tmp_path, 16, FILES)
    assert concept.masks is not None
    torch.testing.assert_close(2 * concept.masks - 1, concept.images[:, :1], rtol=0, atol=0.15)


@pytest.mark.parametrize("kind", ["file", "array", "tensor", "key"])
def test_what_is_opaque_counts(tmp_path: Path, kind: str) -> None:
    picture = Image.new("RGBA", (40, 24), "white")
    picture.putalpha(shape().point(lambda v: 255 * (v > 200)))
    if kind == "key":  # a PNG that calls one colour transparent
        shape().point(lambda v: 255 * (v > 200)).save(tmp_path / "a.png", transparency=0)
    else:
        picture.save(tmp_path / "a.png")
    given = {"array": np.array(picture), "tensor": torch.tensor(np.array(picture)).permute(2, 0, 1)}
    concept = concept_of(given.get(kind, tmp_path), 16, Framing(background="black", mask="alpha"))
    assert concept.masks is not None
    torch.testing.assert_close(2 * concept.masks - 1, concept.images[:, :1], rtol=0, atol=0.02)


def test_a_picture_without_a_mask_counts_whole(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "a.mask.png", "b.png")
    concept = concept_of(tmp_path, 16, FILES)
    assert concept.masks is not None and concept.masks[1].eq(1).all() and not concept.masks[0].eq(1).all()
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    mixed = concept_of([picture, Image.new("RGB", (16, 16))], 16, Framing(mask="alpha"))
    assert mixed.masks is not None and mixed.masks.mean((1, 2, 3)).tolist() == pytest.approx([128 / 255, 1])


def test_where_there_are_no_masks_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "a.png")
    assert concept_of(tmp_path, 16, FILES).masks is None
    assert concept_of(tmp_path, 16, Framing(mask="alpha")).masks is None
    assert "no picture has transparent parts" in caplog.text
    save(tmp_path, "a.mask.png")
    assert concept_of(tmp_path, 16).masks is None


# ------------------------------------------------------------------------------ names
@pytest.mark.parametrize("mask", ["a.mask.png", "A.MASK.PNG", "a.mask.bmp"])
def test_a_mask_is_no_picture_wherever_pictures_are_listed(tmp_path: Path, mask: str) -> None:
    save(tmp_path, "a.png", mask)
    assert [path.name for path in list_pictures(tmp_path)] == ["a.png"]
    concept = concept_of(sorted(tmp_path.iterdir()), 16, FILES)
    assert [path.name for path in concept.paths] == ["a.png"] and concept.masks is not None
    assert len(concept_of(tmp_path / mask, 16)) == 1  # alone it is a picture like any other
    assert len(list_pictures(tmp_path, Framing(every_file=True))) == 2
    assert concept_of(tmp_path, 16, Framing(every_file=True, mask="file")).masks is None


def test_a_mask_of_no_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, "a.png", "b.mask.png")
    with caplog.at_level(logging.WARNING):
        assert len(list_pictures(tmp_path)) == 1
    assert "skipped" in caplog.text and "the mask of no picture" in caplog.text


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["b.mask.png"], "b.mask.png is the mask of no picture: that of NAME.jpg is called NAME.mask.png"),
        (["a.png.mask.png"], "a.png.mask.png is the mask of no word that is learned: call it a.mask.png"),
        (["a_mask.png"], "a_mask.png looks like the mask of a.png: call it a.mask.png"),
        (["a-masklabel.png"], "call it a.mask.png, or .* pictures.mask=ignore"),
        (["mask_a.png"], "call it a.mask.png"),
        (["a.masks.png"], "call it a.mask.png"),
        (["a_alpha.png"], "call it a.mask.png"),
        (["a.mask.png", "a.mask.bmp"], "a.mask.bmp and a.mask.png in .* are masks of one thing: keep one"),
        (["a.mask.png", "a.bmp"], "a.bmp and a.png in .* have one a.mask.png"),
    ],
)
def test_masks_that_are_called_otherwise_are_refused(tmp_path: Path, names: list[str], says: str) -> None:
    save(tmp_path, "a.png", *names)
    with pytest.raises(UserError, match=says) as caught:
        concept_of(tmp_path, 16, FILES)
    assert "\n" not in str(caught.value)
    concept_of(tmp_path, 16, Framing(mask="ignore"))


def test_the_masks_of_pictures_that_are_not_learned_from_are_no_mistake(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "b.png", "b.mask.png")
    assert concept_of(tmp_path, 16, Framing(mask="file", first=1)).masks is None


# ------------------------------------------------------------------------------ words
WORDS = ("<cat>", "<red mug>")


def concept_with(folder: Path, *names: str, words: tuple[str, ...] = WORDS) -> Concept:
    save(folder, "a.png", *names)
    return concept_of(folder, 16, FILES, words)


def test_masks_of_words_are_named_by_the_words_letters_and_digits(tmp_path: Path) -> None:
    concept = concept_with(
        tmp_path, "a.cat.mask.png", "a.Red-Mug.mask.png", "b.png", "b.red-mug.mask.png", "c.png"
    )
    assert [path.name for path in concept.paths] == ["a.png", "b.png", "c.png"] and concept.masks is None
    assert concept.word_masks is not None and concept.word_masks.shape == (3, 2, 16, 16)
    assert concept.word_masks.flatten(2).any(2).tolist() == [[True, True], [False, True], [False, False]]
    assert torch.equal(concept.word_masks[0, 0], concept.word_masks[0, 1])
    assert len(concept.mask_hashes) == 3 and len(list_pictures(tmp_path)) == 3
    assert list(concept.masks_of(0)) == ["_0", "_1"] and list(concept.masks_of(1)) == ["_1"]


def test_a_picture_whose_name_has_a_dot_has_its_own_mask(tmp_path: Path) -> None:
    concept = concept_with(tmp_path, "a.cat.png", "a.cat.mask.png")
    assert [path.name for path in concept.paths] == ["a.cat.png", "a.png"]
    assert concept.masks is not None and concept.masks.mean((1, 2, 3))[1] == 1 and concept.word_masks is None


@pytest.mark.parametrize(
    ("names", "words", "says"),
    [
        (
            ["a.dog.mask.png"],
            WORDS,
            "mask of no word that is learned: call it a.mask.png or a.cat.mask.png or a.red",
        ),
        (["a.cat.mask.png", "a.mask.png"], WORDS, "a.mask.png is the mask of all that its picture shows"),
        (["a.cat.mask.png", "a.cat.mask.bmp"], WORDS, "are masks of one thing: keep one"),
        (["a.cat.mask.png"], ("<cat>", "cat"), "the mask of several words"),
        (["b.cat.mask.png"], WORDS, "b.cat.mask.png is the mask of no picture"),
    ],
)
def test_masks_of_no_one_word_are_refused(
    tmp_path: Path, names: list[str], words: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        concept_with(tmp_path, *names, words=words)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ content


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("L", (40, 24)), "a.mask.png has nothing white .its lightest pixel is 0 of 255"),
        (shape().point(lambda v: v > 0), "its lightest pixel is 1 of 255"),  # class numbers
        (shape().crop((0, 0, 24, 24)), "has 24 x 24 pixels, and a.png has 40 x 24"),
    ],
)
def test_a_mask_that_cannot_be_one_is_named(tmp_path: Path, mask: Image.Image, says: str) -> None:
    save(tmp_path, "a.png")
    mask.save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match=says) as caught:
        concept_of(tmp_path, 16, FILES)
    assert "\n" not in str(caught.value)


def test_a_mask_of_what_is_cropped_away_is_named(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    edge = Image.new("L", (40, 24))
    edge.paste(255, (0, 0, 4, 24))
    edge.save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match="a.mask.png is black in the square that is cut out"):
        concept_of(tmp_path, 16, FILES)
    assert concept_of(tmp_path, 16, Framing(mask="file", fit="pad")).masks is not None
    picture = Image.new("RGBA", (40, 24), (0, 0, 0, 0))
    with pytest.raises(UserError, match="picture 2 is transparent all over"):
        concept_of([shape(), picture], 16, Framing(mask="alpha"))
    picture.save(tmp_path / "c.png")
    with pytest.raises(UserError, match="c.png is transparent all over"):
        concept_of(tmp_path / "c.png", 16, Framing(mask="alpha"))
