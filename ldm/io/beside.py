"""Files beside a picture that belong to it: the text with its captions, and its mask."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.io.decode import suffixes

log = logging.getLogger(__name__)

#: endings of the texts that hold a picture's captions
TEXTS = (".txt", ".caption")
#: what stands before the ending of a mask's name: the mask of cat.jpg is cat.mask.png
MASK = ".mask"
#: names of masks by other conventions, in small letters, with the name of their picture as the only group
_ALMOST = (
    re.compile(r"(.+?)[ _.-]+mask(?:s|label)?"),
    re.compile(r"masks?[ _.-]+(.+)"),
    re.compile(r"(.+?)[ _.-]+(?:matte|segmentation|seg|alpha)"),
)


def caption_files(pictures: Sequence[Path]) -> dict[Path, Path]:
    """Picture -> the text file beside it that holds its captions, where there is one.

    Of ``cat.png`` that is ``cat.txt`` or ``cat.caption``, else ``cat.png.txt`` or ``cat.png.caption``, in
    whatever letter case. If there are several, the first of these is taken, with a warning.
    """
    texts: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for path in _beside(pictures):
        if path.suffix.lower() in TEXTS:
            texts[path.parent, path.stem.lower()].append(path.name)
    found = {}
    for path in pictures:
        wanted = [path.stem + suffix for suffix in TEXTS] + [path.name + suffix for suffix in TEXTS]
        stems = (path.stem.lower(), path.name.lower())
        there = [name for stem in stems for name in texts.get((path.parent, stem), ())]
        places = [name.lower() for name in wanted]
        there.sort(key=lambda name: (name not in wanted, places.index(name.lower()), name))  # noqa: B023
        if there:
            found[path] = path.with_name(there[0])
        if len(there) > 1:
            log.warning("%s has several captions: %s is read, and %s is not", path, there[0],
                        " and ".join(there[1:]))  # fmt: skip
    return found


def is_mask(path: Path) -> bool:
    """Whether a file is a mask by its name, and not a picture of its own."""
    return path.stem.lower().endswith(MASK) and path.suffix.lower() in suffixes()


def masks_of(pictures: Iterable[Path], files: Iterable[Path] | None = None) -> set[Path]:
    """The masks of pictures, by their names alone: those among ``files``, by default those beside them."""
    pictures = list(pictures)
    stems = {(path.parent, path.stem.lower()) for path in pictures}
    files = _beside(pictures) if files is None else files
    return {path for path in files if is_mask(path) and (path.parent, _shown(path)) in stems}


def _shown(mask: Path) -> str:
    """The stem, in small letters, of the picture that a mask belongs to."""
    return mask.stem.lower().removesuffix(MASK)


def mask_files(pictures: Sequence[Path]) -> dict[Path, Path]:
    """Picture -> the mask beside it, where there is one: of ``cat.jpg`` it is ``cat.mask.png``.

    The mask may end as any picture may, in whatever letter case.

    Raises:
        UserError: a mask of no picture, of two pictures, two masks of one, or a picture that is a mask by
            the name that another program would give it.
    """
    entries = sorted(_beside(pictures))
    owners, masks = defaultdict(list), defaultdict(list)
    for path in entries:
        if is_mask(path):
            masks[path.parent, _shown(path)].append(path)
        elif path.suffix.lower() in suffixes():
            owners[path.parent, path.stem.lower()].append(path)
    for key, files in masks.items():
        if key not in owners:
            raise UserError(f"{files[0]} is the mask of no picture: that of NAME.jpg is called NAME.mask.png")
        for several, what in (
            (files, "are masks of one picture"),
            (owners[key], f"have one {files[0].name}"),
        ):
            if len(several) > 1:
                names = " and ".join(path.name for path in several)
                raise UserError(f"{names} in {key[0]} {what}: give them names of their own")
    _refuse_almost(pictures, owners)
    keys = {path: (path.parent, path.stem.lower()) for path in pictures}
    return {path: masks[key][0] for path, key in keys.items() if key in masks}


def _refuse_almost(pictures: Iterable[Path], owners: dict[tuple[Path, str], list[Path]]) -> None:
    """A mask that is called otherwise would be learned from as a picture."""
    for path in pictures:
        for pattern in _ALMOST:
            match = pattern.fullmatch(path.stem.lower())
            owner = owners.get((path.parent, match[1])) if match else None
            if owner and owner != [path]:
                raise UserError(
                    f"{path} looks like the mask of {owner[0].name}: call it {owner[0].stem}{MASK}"
                    f"{path.suffix}, or learn from it as a picture with pictures.mask=ignore"
                )


def _beside(pictures: Iterable[Path]) -> Iterator[Path]:
    """The files of the folders that pictures are in."""
    for folder in {path.parent for path in pictures}:
        try:
            with os.scandir(folder) as entries:
                yield from (folder / entry.name for entry in entries if entry.is_file())
        except OSError:
            continue  # whoever reads the pictures says what is wrong with their folder
