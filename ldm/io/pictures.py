"""Pictures of any kind as square tensors: files of a folder, and PIL pictures, arrays and tensors in memory.

Pictures are turned as their EXIF orientation says, laid on a colour where they are transparent, and scaled
with their aspect kept: cropped to the middle, or padded. Files that are no pictures are skipped with a
warning; a picture that cannot be decoded stops the run and is named.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from ldm.errors import UserError
from ldm.io import in_memory
from ldm.io.beside import TEXTS, caption_files, is_mask, masks_of
from ldm.io.decode import HEIF_SUFFIXES, decode, flatten, suffixes
from ldm.paths import found

log = logging.getLogger(__name__)

#: files of a folder that are named when they are skipped; the rest is counted
_MOST_NAMED = 20
_RAW = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"})
_HEIF = "a HEIC picture: `pip install pillow-heif` makes it readable, or convert it to JPEG"
_FITS = ("crop", "pad", "squash")
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Framing:
    """How pictures are found in a folder and made squares of S pixels a side.

    Attributes:
        fit: "crop" scales the shorter side to S and keeps the middle, "pad" scales the longer side and fills
            up with ``background``, "squash" gives up the aspect.
        background: a colour by name or ``#rrggbb``, on which transparent parts are laid as well.
        upright: turn pictures as their EXIF orientation says, and translate the colours of their ICC
            profile to sRGB.
        interpolation: "bicubic", "bilinear" or "lanczos", with antialiasing.
        every_file: take all that is in the folder for a picture.
        first: take this many of a concept's pictures and leave the rest, at least one; ``None``: take all.
        mask: where a picture shows the concept: "file" says the mask beside it (``mask_files``), "alpha" what
            is opaque in it, "ignore" all of it.
    """

    fit: str = "crop"
    background: str = "white"
    upright: bool = True
    interpolation: str = "bicubic"
    every_file: bool = False
    first: int | None = None
    mask: str = "ignore"


AS_USUAL = Framing()


def list_pictures(folder: Path | str, framing: Framing = AS_USUAL) -> list[Path]:
    """The pictures directly in ``folder``, sorted by name; anything else is warned about.

    Hidden files, and the captions and masks of a picture (``ldm.io.beside``), pass without a warning.

    Raises:
        UserError: the folder does not exist, is a file, or holds no picture.
    """
    folder = found(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that your pictures are in")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that your pictures are in")
    try:
        entries = sorted(p for p in folder.iterdir() if framing.every_file or not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    known = suffixes()
    readable = [p for p in entries if framing.every_file or (p.suffix.lower() in known and p.is_file())]
    pictures = [p for p in readable if framing.every_file or not is_mask(p)]
    expected = {*pictures, *masks_of(pictures, readable), *caption_files(pictures).values()}
    skipped = [p for p in entries if p not in expected]
    for other in skipped[:_MOST_NAMED]:
        log.warning("skipped %s: %s", other, _why_skipped(other))
    if len(skipped) > _MOST_NAMED:
        log.warning("skipped %d more files that are no pictures", len(skipped) - _MOST_NAMED)
    if not pictures:
        needs = next((f": {p.name} is {_HEIF}" for p in skipped if p.suffix.lower() in HEIF_SUFFIXES), None)
        raise UserError(f"no pictures in {folder}{needs or ': put 3 to 5 there (jpg, png, webp, gif, ...)'}")
    return pictures


def _why_skipped(path: Path) -> str:
    """What a file of a concept's folder is that is no picture, in words."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "a folder"
    if not path.exists():
        return "a link to a file that is not there"
    if not path.is_file():
        return "a pipe or a device"
    if suffix in HEIF_SUFFIXES:
        return _HEIF
    if suffix in TEXTS:
        return f"a text that is no picture's: call it as the picture is called, with the ending {suffix}"
    if is_mask(path):
        return "the mask of no picture: that of NAME.jpg is called NAME.mask.png"
    if suffix in _RAW:
        return "a camera's raw file: convert it to JPEG"
    if suffix in (".json", ".jsonl", ".csv"):
        return "not a picture; captions are read from a text beside each picture, name.txt"
    return "not a picture of a known kind"


def listed_pictures(
    images: in_memory.Pictures, framing: Framing = AS_USUAL
) -> list[Path] | list[Image.Image] | list[Tensor]:
    """Pictures as they are given in Python: files, PIL pictures of 8 bits, or tensors of floats.

    Args:
        images: a folder or a file; or one or several of: files, PIL pictures, arrays (H, W), (H, W, 3),
            (H, W, 4) of 8 bits, tensors (3, H, W) or (1, H, W) of 8 bits, or floats (3, H, W). Of files, a
            mask is left out where its picture is given too.
        framing: how they are found.

    Raises:
        UserError: there are none, kinds are mixed, a shape is no picture's, or ``framing.first`` leaves none.
    """
    if isinstance(images, str | Path) and not found(images).is_file():
        items: list = list(list_pictures(images, framing))
    else:
        items = in_memory.listed(images)
    if all(isinstance(item, str | Path) for item in items):
        items = [found(str(item)) for item in items]
        masks = set() if framing.every_file else masks_of(items, items)
        items = [path for path in items if path not in masks]
    if framing.first is not None and framing.first >= len(items):
        raise UserError(
            f"train_pictures is {framing.first}, and there are {len(items)} pictures: give less, the rest "
            "are references"
        )
    items = items[: framing.first]
    pictures = [in_memory.picture(item) for item in items if not isinstance(item, str | Path)]
    if pictures and len(pictures) < len(items):
        raise UserError("pictures and files are mixed: give only one kind")
    tensors = [picture for picture in pictures if isinstance(picture, Tensor)]
    if tensors and len(tensors) < len(pictures):
        raise UserError("pictures of 8 bits and of floats are mixed: give only one kind")
    return tensors or [picture for picture in pictures if isinstance(picture, Image.Image)] or items


def load_pictures(images: in_memory.Pictures, size: int, framing: Framing = AS_USUAL) -> Tensor:
    """Pictures as they are given in Python, as (N, 3, S, S) float32 in [-1, 1].

    Args:
        images: of :func:`listed_pictures`; floats are of (3, S, S) in [-1, 1].
        size: side S in pixels.
        framing: how they are found and made squares of.

    Raises:
        UserError: what :func:`listed_pictures` refuses, or one cannot be decoded.
    """
    items = listed_pictures(images, framing)
    if isinstance(items[0], Tensor):
        return in_memory.floats([item for item in items if isinstance(item, Tensor)], size)
    if isinstance(items[0], Image.Image):
        return load_pil([item for item in items if isinstance(item, Image.Image)], size, framing)
    return torch.stack([load_picture(item, size, framing) for item in items if isinstance(item, Path)])


def load_picture(path: Path | str, size: int, framing: Framing = AS_USUAL) -> Tensor:
    """One file as (3, S, S) float32 in [-1, 1].

    Raises:
        UserError: names the file and what is wrong with it.
    """
    colour = _colour(framing.background)
    flat = decode(found(path), size, colour, framing.upright)
    return to_tensor(fit_square(flat, size, framing.fit, colour, framing.interpolation))


def load_pil(images: Sequence[Image.Image], size: int, framing: Framing = AS_USUAL) -> Tensor:
    """Pictures already in memory, as (N, 3, S, S) float32 in [-1, 1]."""
    colour = _colour(framing.background)
    turned = (ImageOps.exif_transpose(image) if framing.upright else image for image in images)
    flat = (flatten(image, colour, managed=framing.upright) for image in turned)
    squares = (fit_square(image, size, framing.fit, colour, framing.interpolation) for image in flat)
    return torch.stack([to_tensor(square) for square in squares])


def _colour(name: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getcolor(name, "RGB")[:3]  # type: ignore[index,return-value]
    except ValueError as error:
        raise UserError(f"unknown background colour {name!r}: give a name or #rrggbb") from error


def fit_square(
    image: Image.Image, size: int, fit: str, background: tuple[int, int, int] | int, interpolation: str
) -> Image.Image:
    """RGB, or grey, of any size to ``size`` x ``size``; see :class:`Framing`."""
    if fit not in _FITS:
        raise UserError(f"unknown fit {fit!r}: choose one of {', '.join(_FITS)}")
    if interpolation not in _FILTERS:
        raise UserError(f"unknown interpolation {interpolation!r}: choose one of {', '.join(_FILTERS)}")
    if size < 1:
        raise UserError(f"a picture cannot be {size} pixels wide: give a positive size")
    width, height = image.size
    chosen = _FILTERS[interpolation]
    if fit == "squash":
        return image.resize((size, size), chosen)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((size, size), chosen, box=box)
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new(image.mode, (size, size), background)
    canvas.paste(image.resize(inner, chosen), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit RGB (H, W) to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1)
