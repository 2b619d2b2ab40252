"""A user's concept: a folder of a few pictures of any kind, as tensors.

Pictures are turned as their EXIF orientation says, laid on a colour where they are transparent,
and scaled with their aspect kept: cropped to the middle, or padded (the official code's squashing
can be asked for). Files that are no pictures are skipped with a warning; a picture that cannot be
decoded stops the run and is named.
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
from ldm.inversion.captions import TEXTS, caption_files
from ldm.io import in_memory
from ldm.io.atomic import file_sha256
from ldm.io.decode import HEIF_SUFFIXES, SUFFIXES, decode, flatten, suffixes
from ldm.paths import expanded

log = logging.getLogger(__name__)

#: Files of a folder that are named when they are skipped; the rest is counted.
_MOST_NAMED = 20
_RAW = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"})
_HEIF = "a HEIC picture: `pip install pillow-heif` makes it readable, or convert it to JPEG"
__all__ = ["SUFFIXES", "Concept", "concept_of", "list_pictures", "load_concept", "load_picture", "load_pil"]
_FITS = ("crop", "pad", "squash")
_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, eq=False)
class Concept:
    """images: (N, 3, S, S) float32 in [-1, 1]; paths and sha256 of the files, in the same order."""

    images: Tensor
    paths: tuple[Path, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_hashes(self) -> dict[str, str]:
        """File name -> sha256 hex, for a run's manifest."""
        return {path.name: digest for path, digest in zip(self.paths, self.hashes, strict=True)}


def list_pictures(folder: Path | str, *, every_file: bool = False, unsorted: bool = False) -> list[Path]:
    """The pictures directly in ``folder``, sorted by name; anything else is warned about.

    Hidden files and the captions of a picture (``ldm.inversion.captions.caption_files``) pass without a warning.
    every_file: all that is in the folder is taken for a picture. unsorted: in the file system's order
    (for both see ``CompatConfig``). :class:`UserError` if the folder does not exist, is a file, or
    holds no picture.
    """
    folder = expanded(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that your pictures are in")
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that your pictures are in")
    try:
        entries = [p for p in folder.iterdir() if every_file or not p.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    if not unsorted:
        entries.sort()
    known = suffixes()
    pictures = [p for p in entries if every_file or (p.suffix.lower() in known and p.is_file())]
    expected = {*pictures, *caption_files(pictures).values()}
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
    if suffix in _RAW:
        return "a camera's raw file: convert it to JPEG"
    if suffix in (".json", ".jsonl", ".csv"):
        return "not a picture; captions are read from a text beside each picture, name.txt"
    return "not a picture of a known kind"


def load_concept(
    folder: Path | str,
    size: int,
    *,
    fit: str = "crop",
    background: str = "white",
    upright: bool = True,
    interpolation: str = "bicubic",
    every_file: bool = False,
    unsorted: bool = False,
) -> Concept:
    """Reads a concept folder (see :func:`list_pictures`) into one tensor.

    size: side S in pixels. fit: "crop" scales the shorter side to S and keeps the middle, "pad"
    scales the longer side and fills up with ``background``, "squash" gives up the aspect.
    background: a colour by name or ``#rrggbb``, which transparent parts are laid on as well.
    upright: turn pictures as their EXIF orientation says, and translate the colours of their ICC profile
    to sRGB. interpolation: "bicubic", "bilinear" or
    "lanczos", with antialiasing. every_file, unsorted: of :func:`list_pictures`.
    :class:`UserError` for a folder without pictures or a picture that cannot be decoded.
    """
    paths = list_pictures(folder, every_file=every_file, unsorted=unsorted)
    images = torch.stack(
        [
            load_picture(
                p, size, fit=fit, background=background, upright=upright, interpolation=interpolation
            )
            for p in paths
        ]
    )
    return Concept(images, tuple(paths), tuple(file_sha256(p) for p in paths))


def concept_of(
    images: in_memory.Pictures,
    size: int,
    *,
    fit: str = "crop",
    background: str = "white",
    upright: bool = True,
    interpolation: str = "bicubic",
    every_file: bool = False,
    unsorted: bool = False,
) -> Concept:
    """Pictures as they are given in Python; other arguments as :func:`load_concept`.

    images: a folder or a file; or one or several of: files, PIL pictures, arrays (H, W), (H, W, 3), (H, W, 4)
    of 8 bits, tensors (3, H, W) or (1, H, W) of 8 bits, or floats (3, S, S) in [-1, 1] of that very size.
    :class:`UserError` for none at all, kinds that are mixed, another shape, or what cannot be decoded.
    """
    if isinstance(images, str | Path) and not expanded(images).is_file():
        return load_concept(
            images,
            size,
            fit=fit,
            background=background,
            upright=upright,
            interpolation=interpolation,
            every_file=every_file,
            unsorted=unsorted,
        )
    items = in_memory.listed(images)
    pictures = [in_memory.picture(item) for item in items if not isinstance(item, str | Path)]
    if pictures and len(pictures) < len(items):
        raise UserError("pictures and files are mixed: give only one kind")
    if pictures and all(isinstance(picture, Tensor) for picture in pictures):
        return Concept(in_memory.floats(pictures, size), (), ())  # type: ignore[arg-type]
    if any(isinstance(picture, Tensor) for picture in pictures):
        raise UserError("pictures of 8 bits and of floats are mixed: give only one kind")
    if pictures:
        loaded = load_pil(
            pictures,
            size,
            fit=fit,
            background=background,  # type: ignore[arg-type]
            upright=upright,
            interpolation=interpolation,
        )
        return Concept(loaded, (), ())
    paths = tuple(expanded(str(item)) for item in items)
    loaded = torch.stack(
        [
            load_picture(
                path, size, fit=fit, background=background, upright=upright, interpolation=interpolation
            )
            for path in paths
        ]
    )
    return Concept(loaded, paths, tuple(file_sha256(path) for path in paths))


def load_picture(
    path: Path | str,
    size: int,
    *,
    fit: str = "crop",
    background: str = "white",
    upright: bool = True,
    interpolation: str = "bicubic",
) -> Tensor:
    """One file as (3, S, S) float32 in [-1, 1]; arguments as :func:`load_concept`.

    :class:`UserError` that names the file and what is wrong with it.
    """
    colour = _colour(background)
    flat = decode(expanded(path), size, colour, upright)
    return to_tensor(fit_square(flat, size, fit, colour, interpolation))


def load_pil(
    images: Sequence[Image.Image],
    size: int,
    *,
    fit: str = "crop",
    background: str = "white",
    upright: bool = True,
    interpolation: str = "bicubic",
) -> Tensor:
    """Pictures already in memory, as (N, 3, S, S); arguments as :func:`load_concept`."""
    colour = _colour(background)
    turned = (ImageOps.exif_transpose(image) if upright else image for image in images)
    flat = (flatten(image, colour, managed=upright) for image in turned)
    return torch.stack([to_tensor(fit_square(image, size, fit, colour, interpolation)) for image in flat])


def _colour(name: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getcolor(name, "RGB")[:3]  # type: ignore[index,return-value]
    except ValueError as error:
        raise UserError(f"unknown background colour {name!r}: give a name or #rrggbb") from error


def fit_square(
    image: Image.Image, size: int, fit: str, background: tuple[int, int, int], interpolation: str
) -> Image.Image:
    """RGB of any size to ``size`` x ``size``; arguments as :func:`load_concept`."""
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
    canvas = Image.new("RGB", (size, size), background)
    canvas.paste(image.resize(inner, chosen), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit RGB (H, W) to (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1)
