"""Files beside a picture that belong to it: the text with its captions, and its masks."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.io.decode import suffixes
from ldm.io.runs import slug

log = logging.getLogger(__name__)

#: endings of the texts that hold a picture's captions
TEXTS = (".txt", ".caption")
#: what stands before the ending of a mask's name: the mask of cat.jpg is cat.mask.png
MASK = ".mask"
#: what a mask of all that a picture shows is of, in place of a word
WHOLE = ""
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
    return {path for path in files if is_mask(path) and not stems.isdisjoint(_owners(path))}


def _owners(mask: Path) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """Folder and stem, in small letters, of the picture that a mask belongs to: as the mask of all that it
    shows, and as the mask of a word."""
    stem = mask.stem.lower().removesuffix(MASK)
    return (mask.parent, stem), (mask.parent, stem.rpartition(".")[0])


def mask_files(pictures: Sequence[Path], words: Sequence[str] = ()) -> dict[Path, dict[str, Path]]:
    """Picture -> the masks beside it, by the word that each is of, or ``WHOLE``.

    Of ``cat.jpg`` that is ``cat.mask.png``, and of the word "<red mug>" in it ``cat.red-mug.mask.png``: the
    word's letters and digits (``slug``). A mask may end as any picture may, in whatever letter case.

    Raises:
        UserError: a mask of no picture or of no word, masks and pictures that can be told apart by nothing,
            or a picture that is a mask by the name that another program would give it.
    """
    owners: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    masks = []
    for path in sorted(_beside(pictures)):
        if is_mask(path):
            masks.append(path)
        elif path.suffix.lower() in suffixes():
            owners[path.parent, path.stem.lower()].append(path)
    named = _named(words)
    found: dict[tuple[Path, str], dict[str, Path]] = defaultdict(dict)
    for mask in masks:
        whole, part = _owners(mask)
        key = whole if whole in owners else part
        if key not in owners:
            raise UserError(f"{mask} is the mask of no picture: that of NAME.jpg is called NAME.mask.png")
        word = WHOLE if key == whole else _word(mask, owners[key][0], named)
        if len(owners[key]) > 1:
            names = " and ".join(path.name for path in owners[key])
            raise UserError(f"{names} in {mask.parent} have one {mask.name}: give them names of their own")
        if word in found[key]:
            both = f"{found[key][word].name} and {mask.name}"
            raise UserError(f"{both} in {mask.parent} are masks of one thing: keep one")
        found[key][word] = mask
    for files in found.values():
        if WHOLE in files and len(files) > 1:
            raise UserError(
                f"{files[WHOLE]} is the mask of all that its picture shows, and there are masks of words "
                "beside it: keep it or those"
            )
    _refuse_almost(pictures, owners)
    keys = {path: (path.parent, path.stem.lower()) for path in pictures}
    return {path: found[key] for path, key in keys.items() if key in found}


def _named(words: Sequence[str]) -> dict[str, str]:
    """What stands for each word in the name of a mask -> the word; ``WHOLE`` where that is several words'."""
    named: dict[str, str] = {}
    for word in words:
        short = slug(word).lower()
        named[short] = WHOLE if short in named else word
    return named


def _word(mask: Path, picture: Path, named: Mapping[str, str]) -> str:
    """The word that a mask is of.

    Raises:
        UserError: it is of none, or of several.
    """
    short = unicodedata.normalize("NFC", mask.stem.lower().removesuffix(MASK).rpartition(".")[2])
    if short not in named:
        names = [f"{picture.stem}{MASK}{mask.suffix}"]
        names += [f"{picture.stem}.{known}{MASK}{mask.suffix}" for known in named]
        raise UserError(f"{mask} is the mask of no word that is learned: call it {' or '.join(names)}")
    if named[short] == WHOLE:
        raise UserError(f"{mask} is the mask of several words, whose letters and digits are the same: give "
                        "them other names")  # fmt: skip
    return named[short]


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
