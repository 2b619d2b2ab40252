"""Drawings of many sets: any number of every thing, each with the name of its set.

:func:`prepare_drawings` fetches the sets of ``ldm.emoji.sets`` once; :class:`EmojiDrawings` reads the
result, and so does ``EmojiSprites``, which takes the things that the three main sets all draw.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ldm.emoji.names import Names, held_out
from ldm.emoji.sets import SETS, VENDORS, DrawingSet
from ldm.emoji.sprites import (
    PACKAGES,
    SPRITE_SIZE,
    Concept,
    Package,
    checked_groups,
    emoji_concepts,
    fitted,
    hex_code,
    members,
    read_sprites,
    tarball,
    write_drawings,
)
from ldm.errors import UserError
from ldm.io.atomic import atomic_write

ICONS, CODES = "package/icons.json", "package/chars.json"
SHORTCODES = tuple(
    f"package/en/shortcodes/{name}.json" for name in ("cldr", "emojibase", "github", "iamcal", "joypixels")
)
SAME = 3.0  # mean difference, of 255, below which two drawings of a set are one
EMPTY = 0.02  # share of the square that a drawing must cover


@dataclass(frozen=True)
class EmojiDrawings:
    """Things and their drawings.

    Attributes:
        concepts: the things.
        sprites: M drawings (M, S, S, 4), uint8 premultiplied RGBA.
        concept, style: (M,) int64 indices of ``concepts`` and ``styles``.
        styles: names of the sets.
        reserved: the labels of all prepared concepts, also of those left out.
    """

    concepts: tuple[Concept, ...]
    sprites: Tensor
    concept: Tensor
    style: Tensor
    styles: tuple[str, ...]
    reserved: frozenset[str]

    @classmethod
    def load(
        cls,
        root: Path,
        groups: Iterable[str] | None = None,
        exclude: Collection[str] = (),
        sets: Collection[str] | None = None,
    ) -> EmojiDrawings:
        """Read a prepared folder.

        Args:
            groups: names to keep (None: all).
            exclude: hex codes to leave out, with the things that may be the same by another name.
            sets: names of the sets to keep (None: all).

        Raises:
            UserError: an unknown group or set, an unprepared folder, or nothing is left.
        """
        chosen = checked_groups(groups)
        concepts, sprites, concept, style, styles = read_sprites(root)
        if unknown := set(sets or ()) - set(styles):
            raise UserError(f"no drawings of {min(unknown)} in {root}: use {', '.join(styles)}")
        out = held_out(concepts, exclude)
        fits = np.array([c.group in chosen and c.hex not in out for c in concepts])
        wanted = np.array([sets is None or name in sets for name in styles])
        keep = np.flatnonzero(fits[concept] & wanted[style])
        if not len(keep):
            raise UserError("no emoji left: the groups, sets and hex codes asked for exclude each other")
        rows, concept = np.unique(concept[keep], return_inverse=True)
        return cls(
            tuple(concepts[i] for i in rows),
            torch.from_numpy(sprites[keep]),
            torch.from_numpy(concept.astype(np.int64)),
            torch.from_numpy(style[keep].astype(np.int64)),
            styles,
            frozenset(c.label for c in concepts),
        )

    def __len__(self) -> int:
        return len(self.sprites)


def prepare_drawings(
    out: Path,
    packages: Path | None = None,
    sets: Collection[str] = tuple(SETS),
    size: int = SPRITE_SIZE,
    progress: bool = True,
) -> Path:
    """Fetch sets and write ``out/sprites.npz``, ``out/concepts.json`` and ``out/ATTRIBUTION.md``.

    Args:
        packages: a folder that already holds the tarballs; without it ``npm pack`` fetches them.
        sets: names in :data:`SETS` or :data:`VENDORS`.
        size: pixels a side of the drawings.

    Raises:
        UserError: an unknown set, resvg_py is missing, or a package cannot be had.
    """
    known = SETS | VENDORS
    if unknown := set(sets) - set(known):
        raise UserError(f"unknown set {min(unknown)}: use {', '.join(known)}")
    rows: list[tuple[str, str, np.ndarray]] = []
    with tempfile.TemporaryDirectory() as folder, Progress(disable=not progress) as bar:
        path = tarball(PACKAGES["names"], packages, Path(folder))
        emoji = emoji_concepts(path)
        names = Names(emoji, _shortcodes(path))
        things: dict[str, Concept] = {}
        for title in (name for name in known if name in sets):
            task = bar.add_task(title, total=None)
            drawn: dict[str, list[np.ndarray]] = {}
            for concept, data in _pictures(title, known[title], names, emoji, packages, Path(folder), size):
                sprite = fitted(data, size)
                if concept.hex.startswith("thing-"):
                    things[concept.hex] = concept
                _add(drawn.setdefault(concept.hex, []), sprite)
                bar.advance(task)
            rows += [(code, title, sprite) for code, several in drawn.items() for sprite in several]
    seen = {code for code, _, _ in rows}
    concepts = [c for c in emoji if c.hex in seen] + [things[code] for code in sorted(things) if code in seen]
    place = {c.hex: i for i, c in enumerate(concepts)}
    rows.sort(key=lambda row: place[row[0]])
    styles = [name for name in known if name in sets]
    write_drawings(
        out,
        concepts,
        np.stack([sprite for _, _, sprite in rows]),
        np.array([place[code] for code, _, _ in rows]),
        np.array([styles.index(title) for _, title, _ in rows]),
        styles,
    )
    with atomic_write(out / "ATTRIBUTION.md") as path:
        path.write_text(attribution(styles), encoding="utf-8")
    return out


def attribution(sets: Iterable[str]) -> str:
    """Who drew the sets, and under which licence, as a Markdown table."""
    rows = [(name, (SETS | VENDORS)[name]) for name in sets]
    lines = [f"| {name} | `{s.package.spec}` | {s.licence} | {s.author} |" for name, s in rows]
    return "\n".join(["| set | from (npm) | licence | attribution |", "|---|---|---|---|", *lines]) + "\n"


def _add(drawings: list[np.ndarray], sprite: np.ndarray) -> None:
    """Keep a drawing unless it is empty or the same as one before."""
    if (sprite[..., 3] > 127).mean() < EMPTY:
        return
    if all(np.abs(sprite.astype(np.int16) - other).mean() > SAME for other in drawings):
        drawings.append(sprite)


def _shortcodes(path: Path) -> dict[str, list[str]]:
    """Hex code -> its short codes in the emojibase tarball."""
    found: dict[str, list[str]] = {}
    for _, data in members(path, set(SHORTCODES), ""):
        for code, names in json.loads(data).items():
            found.setdefault(hex_code(code), []).extend([names] if isinstance(names, str) else names)
    return found


def _pictures(
    title: str,
    drawing_set: DrawingSet,
    names: Names,
    emoji: Sequence[Concept],
    packages: Path | None,
    temporary: Path,
    size: int,
) -> Iterator[tuple[Concept, bytes]]:
    """What the pictures of a set show, and their files."""
    by_code = {c.hex: c for c in emoji}
    sharp = drawing_set.sharp if size > SPRITE_SIZE else None
    package: Package = sharp or drawing_set.package
    path = tarball(package, packages, temporary)
    if package.folder:
        found = {hex_code(Path(name).stem): data for name, data in members(path, None, package.folder)}
        yield from ((by_code[code], data) for code, data in found.items() if code in by_code)
        return
    files = {name: json.loads(data) for name, data in members(path, {ICONS, CODES}, "")}
    icons = files[ICONS]
    called: list[tuple[str, Concept | None]]
    if drawing_set.kind == "codes":
        called = [(icon, by_code.get(hex_code(code))) for code, icon in files[CODES].items()]
    else:
        called = [(icon, names.find(title, drawing_set.kind, name)) for name, icon in _named(icons).items()]
        called += [(icon, by_code.get(hex_code(code))) for code, icon in files.get(CODES, {}).items()]
    own = icons["icons"]
    chosen = _largest({icon: concept for icon, concept in called if concept and icon in own})
    for icon, concept in chosen.items():
        yield concept, _png(icons, icon, 2 * size)


def _largest(chosen: Mapping[str, Concept]) -> dict[str, Concept]:
    """Of an icon that comes in several sizes (``book-16`` ... ``book-48``) the largest one."""
    best: dict[str, tuple[int, str]] = {}
    for name in chosen:
        match = re.fullmatch(r"(.+)-(16|20|24|28|32|48)", name)
        base, pixels = (match[1], int(match[2])) if match else (name, 0)
        best[base] = max(best.get(base, (0, name)), (pixels, name))
    return {name: chosen[name] for _, name in best.values()}


def _named(icons: Mapping[str, Any]) -> dict[str, str]:
    """Names of an Iconify file -> the icons that they call: its own names, and plain other ones."""
    others = icons.get("aliases", {}).items()
    same = {name: other["parent"] for name, other in others if set(other) == {"parent"}}
    own = {name: name for name in icons["icons"]}
    return own | {name: icon for name, icon in same.items() if icon in own and name not in own}


def _png(icons: Mapping[str, Any], name: str, pixels: int) -> bytes:
    """An icon of an Iconify file as a PNG; sizes and places default to the file's."""
    try:
        import resvg_py
    except ImportError as error:
        raise UserError("SVG needs resvg_py: pip install resvg_py") from error

    icon = {"left": 0, "top": 0, "width": 16, "height": 16}
    for values in (icons, icons["icons"][name]):
        icon |= {key: values[key] for key in icon if key in values}
    box = " ".join(str(icon[key]) for key in ("left", "top", "width", "height"))
    size = f'width="{icon["width"]}" height="{icon["height"]}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {spaces} {size} viewBox="{box}">{icons["icons"][name]["body"]}</svg>'
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=pixels))
