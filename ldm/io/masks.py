"""Where in its picture a concept is: from masks beside the picture, or from what is opaque in it.

A mask is made a square exactly as its picture is: turned, cropped or padded, and scaled by the same filter.
White counts, black does not, and greys count in part, as in the masks of ``ldm edit``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.errors import UserError
from ldm.io.beside import WHOLE, mask_files
from ldm.io.decode import alpha_of, decode, decode_alpha, picture_size
from ldm.io.pictures import Framing, fit_square

log = logging.getLogger(__name__)

BLACK = (0, 0, 0)
#: the lightest pixel of a mask has at least this value of 255; a mask of class numbers is darker
WHITE = 128


class Masks(NamedTuple):
    """Masks of N pictures.

    Attributes:
        whole: (N, 1, S, S) float32 in [0, 1], of all that a picture shows; a picture without such a mask has
            ones. ``None``: none has one.
        of_words: (N, W, S, S) float32 in [0, 1], of each of W words; zeros where a picture has no mask of a
            word. ``None``: none has one of any.
        files: the mask files that were read.
    """

    whole: Tensor | None = None
    of_words: Tensor | None = None
    files: tuple[Path, ...] = ()


def load_masks(
    pictures: Sequence[Path] | Sequence[Image.Image] | Sequence[Tensor],
    size: int,
    framing: Framing,
    words: Sequence[str] = (),
) -> Masks:
    """The masks of pictures.

    Args:
        pictures: what ``listed_pictures`` gave.
        size: side S in pixels.
        framing: how the pictures are made squares of, and where their masks are.
        words: W placeholders, which masks may be of.

    Raises:
        UserError: names the mask that is black where its picture is used, has another shape than the
            picture, or is called otherwise than ``framing.mask`` says.
    """
    if framing.mask == "alpha":
        return _from_alpha(pictures, size, framing)
    paths = [picture for picture in pictures if isinstance(picture, Path)]
    if framing.mask == "ignore" or framing.every_file or not paths:
        return Masks()
    files = mask_files(paths, words)
    found = {
        path: {word: _from_file(file, path, size, framing) for word, file in files.get(path, {}).items()}
        for path in paths
    }
    none = torch.zeros(1, size, size)
    whole = [own.get(WHOLE) for own in found.values()]
    of_words = [torch.cat([own.get(word, none) for word in words]) for own in found.values()] if words else []
    return Masks(
        _stacked(whole, size),
        torch.stack(of_words) if any(own.keys() - {WHOLE} for own in found.values()) else None,
        tuple(file for path in paths for file in files.get(path, {}).values()),
    )


def _from_file(mask: Path, picture: Path, size: int, framing: Framing) -> Tensor:
    grey = decode(mask, size, BLACK, framing.upright).convert("L")
    width, height = picture_size(picture, framing.upright)
    own_width, own_height = picture_size(mask, framing.upright)
    if min(abs(own_width * height / width - own_height), abs(own_height * width / height - own_width)) > 1:
        raise UserError(
            f"the mask {mask} has {own_width} x {own_height} pixels, and {picture.name} has {width} x "
            f"{height}: give a mask of the whole picture"
        )
    lightest = grey.getextrema()[1]
    if lightest < WHITE:  # type: ignore[operator]
        raise UserError(f"the mask {mask} has nothing white (its lightest pixel is {lightest} of 255): make "
                        "white what counts")  # fmt: skip
    return _square(grey, size, framing, f"the mask {mask} is black")


def _from_alpha(
    pictures: Sequence[Path] | Sequence[Image.Image] | Sequence[Tensor], size: int, framing: Framing
) -> Masks:
    found: list[Tensor | None] = []
    for number, picture in enumerate(pictures, start=1):
        if isinstance(picture, Path):
            alpha, name = decode_alpha(picture, size, framing.upright), str(picture)
        elif isinstance(picture, Image.Image):
            turned = ImageOps.exif_transpose(picture) if framing.upright else picture
            alpha, name = alpha_of(turned), f"picture {number}"
        else:
            alpha, name = None, ""
        where = f"{name} is transparent"
        found.append(None if alpha is None else _square(alpha, size, framing, where))
    if all(mask is None for mask in found):
        log.warning("no picture has transparent parts: with pictures.mask=alpha, all of each counts")
    return Masks(_stacked(found, size))


def _square(grey: Image.Image, size: int, framing: Framing, black: str) -> Tensor:
    """A mask of a whole picture as (1, S, S) in [0, 1], cropped or padded as its picture is."""
    square = fit_square(grey, size, framing.fit, 0, framing.interpolation)
    values = torch.from_numpy(np.array(square))[None].float() / 255
    if not values.any():
        cut = " in the square that is cut out of the picture" if grey.getextrema()[1] else " all over"
        raise UserError(f"{black}{cut}: nothing of the picture would count")
    return values


def _stacked(masks: Sequence[Tensor | None], size: int) -> Tensor | None:
    """(N, 1, S, S), with ones for ``None``; ``None`` if all are."""
    if all(mask is None for mask in masks):
        return None
    return torch.stack([torch.ones(1, size, size) if mask is None else mask for mask in masks])
