"""Settings as tables, made from the dataclasses when the site is built (``make docs``).

A page asks for a table by a line of its own: ``<!-- settings: CLASS -->``, for the keys of a section
``<!-- settings: CLASS below SECTION -->``, and for a section with the defaults of the class that it stands in
``<!-- settings: CLASS below SECTION of CLASS -->``. Keys, types and defaults come from the class, meanings
from the ``Attributes:`` of its docstring. A key that has no meaning, or a meaning of no key, stops the build.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ldm.ranges import LARGEST, Range

MARK = re.compile(
    r"^<!-- settings: (?P<path>[\w.]+)(?: below (?P<prefix>[\w.]+)(?: of (?P<parent>[\w.]+))?)? -->$",
    re.MULTILINE,
)
MARK_SHORT = re.compile(r"^<!-- short names: (?P<path>[\w.]+) -->$", re.MULTILINE)
#: "a, b: what they mean" of a docstring; the lines that go on are indented once more
ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<text>.*(?:\n {8,}.*)*)", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What mkdocs calls for every page."""
    markdown = MARK.sub(_table_of, markdown)
    return MARK_SHORT.sub(lambda found: short_names(named(found["path"])), markdown)


def _table_of(found: re.Match[str]) -> str:
    parent = None if found["parent"] is None else named(found["parent"])
    return table(named(found["path"]), found["prefix"] or "", parent)


def named(path: str) -> Any:
    """What a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def table(cls: type, prefix: str = "", parent: type | None = None) -> str:
    """A Markdown table of the keys of a dataclass; those of a section within it are in a table of their own.

    Args:
        cls: a dataclass of settings.
        prefix: the section's name, which is written before each key.
        parent: the dataclass that has the section, if its defaults are others than those of ``cls``.

    Raises:
        ValueError: its docstring and its fields do not name the same keys.
    """
    told, hints = meanings(cls), get_type_hints(cls, include_extras=True)
    fields = [field.name for field in dataclasses.fields(cls)]
    untold, unknown = set(fields) - set(told), set(told) - set(fields)
    if untold or unknown:
        raise ValueError(f"docstring of {cls.__name__}: without a meaning {untold}, no such key {unknown}")
    own = {} if parent is None else vars(default_of(parent, prefix))
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name in fields:
        key = f"{prefix}.{name}" if prefix else name
        cells = (
            f"`{key}`",
            type_text(hints[name]),
            default_text(own.get(name, default_of(cls, name))),
            told[name],
        )
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def short_names(names: dict[str, str]) -> str:
    """A Markdown table of other names and the keys that they stand for."""
    rows = [f"| `{short}` | `{key}` |" for short, key in names.items()]
    return "\n".join(["| name | key |", "|---|---|", *rows])


def meanings(cls: type) -> dict[str, str]:
    """Key -> meaning, as Markdown. Keys that share a sentence point to the first of them."""
    parts = (inspect.getdoc(cls) or "").split("Attributes:\n", 1)
    told: dict[str, str] = {}
    for entry in ENTRY.finditer(parts[1] if len(parts) == 2 else ""):
        names = entry["names"].split(", ")
        text = " ".join(entry["text"].split())
        text = re.sub(r"``(.+?)``", r"`\1`", text)
        text = re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)
        told[names[0]] = text if len(names) == 1 else f"({', '.join(f'`{n}`' for n in names)}) {text}"
        told |= {name: f"see `{names[0]}`" for name in names[1:]}
    return told


def type_text(hint: Any) -> str:
    """A type as a user would say it: "whole number from 1 to 1024", "`crop`, `pad` or null"."""
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return "".join([type_text(inner), *map(range_text, notes)])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_text(part) for part in get_args(hint))
    if get_origin(hint) in (tuple, list):
        members = (type_text(part) for part in get_args(hint) if part is not Ellipsis)
        return f"list of {' and '.join(dict.fromkeys(members))}"
    if dataclasses.is_dataclass(hint):
        return "section"
    words = {Any: "any", str: "text", bool: "true or false", float: "number", int: "whole number",
             dict: "mapping", type(None): "null"}  # fmt: skip
    return words.get(hint, getattr(hint, "__name__", str(hint)).lower())


def range_text(bounds: Range) -> str:
    """The numbers that a setting takes."""
    if bounds.high >= LARGEST:
        return f", above {bounds.low:g}" if bounds.above else f", at least {bounds.low:g}"
    return f" from {bounds.low:g} to {'below ' if bounds.below else ''}{bounds.high:.10g}"


def default_of(cls: type, name: str) -> Any:
    """The default of a field; ``dataclasses.MISSING`` if it has none."""
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def default_text(value: Any) -> str:
    """A default as YAML has it."""
    if value is dataclasses.MISSING:
        return "**required**"
    if dataclasses.is_dataclass(value):
        return "see below"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"
