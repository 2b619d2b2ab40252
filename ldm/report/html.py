"""What all pages share: one self-contained file, in which pictures are embedded and all text is escaped.

A page can be mailed or moved alone. Names, prompts and hashes come from a run, and so from anyone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jinja2 import DictLoader, Environment
from PIL import Image

from ldm.io.atomic import write_text
from ldm.report.pages import PAGES

SHOWN = 192  # small pictures are enlarged towards this many pixels a side, three times at most
LARGEST = 1024  # larger ones are embedded reduced to this, two sides considered


class Report(Protocol):
    """What the frame of every page shows.

    Attributes:
        title: text.
        summary: a few settings and results, shown as cards.
        manifest: versions, seeds, hashes; nested mappings are shown flat.
    """

    @property
    def title(self) -> str: ...
    @property
    def summary(self) -> Mapping[str, object]: ...
    @property
    def manifest(self) -> Mapping[str, object]: ...


class Picture(NamedTuple):
    """A picture as a page embeds it, with the size in pixels at which it is shown.

    ``uri`` is empty where the file could not be read: a page with a gap beats no page.
    """

    name: str
    uri: str = ""
    width: int = 0
    height: int = 0


def write_page(page: str, path: Path, report: Report, **parts: Any) -> Path:
    """Write the page of a report atomically.

    Args:
        page: a template's name in ``ldm.report.pages.PAGES``.
        parts: what this template shows beside the frame.

    Returns:
        ``path``.
    """
    html = (
        _environment()
        .get_template(page)
        .render(
            report=report,
            summary=flat(report.summary),
            manifest=flat(report.manifest),
            **parts,
        )
    )
    return write_text(path, html)


@cache
def _environment() -> Environment:
    return Environment(loader=DictLoader(PAGES), autoescape=True, trim_blocks=True)


def picture(path: Path, largest: int = LARGEST) -> Picture:
    """A picture's file as a page embeds it; larger than ``largest`` pixels a side it is reduced."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            data, kind = path.read_bytes(), image.format or ""
            if max(width, height) > largest or kind not in ("PNG", "JPEG", "WEBP", "GIF"):
                image.thumbnail((largest, largest))
                buffer = io.BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                (width, height), data, kind = image.size, buffer.getvalue(), "PNG"
    except (OSError, ValueError):
        return Picture(path.name)
    zoom = min(3.0, max(1.0, SHOWN / min(width, height)))
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode('ascii')}"
    return Picture(path.name, uri, round(width * zoom), round(height * zoom))


def show(value: object) -> str:
    """A value as text: four significant digits, lists with commas, nothing for ``None``."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not finite"
    if isinstance(value, list | tuple):
        return ", ".join(show(v) for v in value)
    return str(value)


def flat(values: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, text) rows."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{before}{name}.")
        else:
            rows.append((f"{before}{name}", show(value)))
    return rows
