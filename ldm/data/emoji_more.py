"""Three further drawings of most concepts, from icon packages of the npm registry.

Noto of 2017 (Apache-2.0), EmojiOne 2 (CC-BY 4.0), flat Fluent (MIT), FxEmojis (Apache-2.0) and Streamline
(CC-BY 4.0), as Iconify packs them: SVG by name. An icon is taken if its name is the label of a concept that
``ldm.data.emoji`` prepared, so that it has that concept's code, and held-out concepts are held out here too.

The result reads like the first three styles (``EmojiPictures``, ``root``), but a concept has the first three
of the sets that draw it, so that captions which name a style may be wrong.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from ldm.data.emoji import STYLES, Package, fitted, members, read_concepts, tarball, write
from ldm.errors import UserError

SETS = {
    name: Package(f"@iconify-json/{name}@{version}", f"iconify-json-{name}-{version}.tgz", digest)
    for name, version, digest in (
        ("noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
        ("emojione", "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
        ("fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
        ("fxemoji", "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
        ("streamline-emojis", "1.2.4", "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc"),
    )
}
ICONS = "package/icons.json"
RENDERED = 128  # pixels a side, before they are fitted


def prepare_more(root: Path, out: Path, packages: Path | None = None, progress: bool = True) -> Path:
    """Fetch the sets (8 MB) and write ``out/sprites.npz`` and ``out/concepts.json``.

    Args:
        root: folder that ``ldm.data.emoji.prepare`` wrote.
        packages: a folder that already holds the tarballs; without it ``npm pack`` fetches them.

    Raises:
        UserError: no such folder, resvg_py is missing, or a package cannot be had.
    """
    if not (root / "concepts.json").is_file():
        raise UserError(f"no prepared emoji in {root}: run `ldm train data` first")
    concepts = read_concepts(root)
    by_name = {_letters(c.label): c.hex for c in concepts}
    drawn: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder, Progress(disable=not progress) as bar:
        for title, package in SETS.items():
            path = tarball(package, packages, Path(folder))
            icons = json.loads(dict(members(path, {ICONS}, ""))[ICONS])
            wanted = {
                code: icon for name, icon in _named(icons).items() if (code := by_name.get(_letters(name)))
            }
            for code, icon in bar.track(wanted.items(), description=f"drawing {title}"):
                drawn.setdefault(code, []).append(fitted(_png(icons, icon)))
    kept = [c for c in concepts if len(drawn.get(c.hex, ())) >= len(STYLES)]
    if not kept:
        raise UserError(f"no concept of {root} is in {len(STYLES)} of the sets: prepare it anew")
    return write(out, kept, [drawn[c.hex][: len(STYLES)] for c in kept])


def _named(icons: Mapping[str, Any]) -> dict[str, str]:
    """Names of an Iconify file -> the icons that they call: its own names, and plain other ones."""
    others = icons.get("aliases", {}).items()
    plain = {name: other["parent"] for name, other in others if set(other) == {"parent"}}
    own = {name: name for name in icons["icons"]}
    return own | {name: icon for name, icon in plain.items() if icon in own and name not in own}


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _png(icons: Mapping[str, Any], name: str) -> bytes:
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
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=RENDERED))
