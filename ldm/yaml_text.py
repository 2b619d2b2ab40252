"""YAML as text: what a file or a ``key=value`` word says, and text that reads back as it was written.

A file comes from anywhere. So its size, its depth and what its aliases, merge keys and ``${...}`` make of
it are bounded, and ``${...}`` names other keys of the same file: no environment variable, no function,
no key of another file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldm.errors import UserError

#: bounds of a YAML file; the official ones have 4 kB and 10 levels, a list of 100,000 concepts 150 MB
MAX_BYTES, MAX_DEPTH = 2**28, 100
#: values that a file may have beyond one a byte, and letters that its ``${...}`` may make of it
MAX_VALUES, MAX_LETTERS = 10_000, 2**15
#: forks of the official files have this section twice; nothing of it is read, so the later one may win
MAY_BE_TWICE = frozenset({"validation"})

_SURROGATES = re.compile("[\ud800-\udfff]")
_MERGE = "tag:yaml.org,2002:merge"
_IMPLICIT = {
    "bool": (r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", "-+0123456789"),
    "float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "merge": (r"<<", "<"),
}


# ------------------------------------------------------------------ reading
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values alone. Against YAML 1.1: ``1e3`` is a number; dates, ``12:30`` and ``007`` are text."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        own = len(node.value)
        super().flatten_mapping(node)
        self.merged += max(0, len(node.value) - own)
        if self.merged > MAX_VALUES:
            raise UserError(f"its merge keys (<<) make more than {MAX_VALUES} values of it")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen and key.tag != _MERGE and key.value not in MAY_BE_TWICE:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice",
                                           problem_mark=key.start_mark)  # fmt: skip
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever this module's reader or another one would not take for that text.

    A file's name may be no Unicode: in Python a string with lone surrogates, in YAML the bytes.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if _SURROGATES.search(text):
        return dumper.represent_binary(os.fsencode(text))
    plain = text.isprintable() and text == text.strip()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_str)
for _class in (_Loader, _Dumper):
    for _name, (_pattern, _first) in _IMPLICIT.items():
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), list(_first)
        )


def read(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file as plain values, ``${...}`` as it is written.

    Raises:
        UserError: no such file, or it is too large, too deep, no YAML or no mapping; with line and reason.
    """
    if not path.is_file():
        what = "is a folder, a pipe or a device" if path.exists() else "does not exist"
        raise UserError(f"config {path} {what}; give the path of a YAML file")
    try:
        size = path.stat().st_size
        _refuse_deep(path, size)
        with path.open("rb") as stream:
            values = yaml.load(stream, _Loader)
        # every value takes a byte or more: a long list passes, what aliases blow up does not
        values = _copied({} if values is None else values, _Budget(max(MAX_VALUES, size)))
    except UserError as error:
        raise UserError(f"config {path}: {error}; correct it") from None
    except Exception as error:  # a broken number, say, is no YAMLError
        raise UserError(f"config {path} is not readable YAML ({_reason(error)}); correct it") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} must be a mapping of keys to values at its top level")
    return values


def _refuse_deep(path: Path, size: int) -> None:
    """A file's size and nesting, before it is read: a reader of YAML may call itself at every level."""
    if size > MAX_BYTES:
        raise UserError(f"it has {size} bytes, and a file of settings has at most {MAX_BYTES}")
    depth = 0
    with path.open("rb") as stream:
        for event in yaml.parse(stream, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"it is nested more than {MAX_DEPTH} levels deep")


def _reason(error: Exception) -> str:
    """What is wrong with a YAML text, and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{at}{error.problem}"
    return " ".join(str(error).split())[:300] or type(error).__name__


class _Budget:
    """How much may still be made of a file."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, n: int = 1) -> None:
        self.left -= n
        if self.left < 0:
            raise UserError("its aliases (*) or ${...} make far more of it than it says")


def _copied(value: Any, budget: _Budget, depth: int = 0) -> Any:
    """Mappings and lists anew, so that no two are one object."""
    budget.take()
    if depth > MAX_DEPTH:
        raise UserError(f"it is nested more than {MAX_DEPTH} levels deep, or holds itself")
    if isinstance(value, dict):
        return {_copied(k, budget): _copied(v, budget, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied(v, budget, depth + 1) for v in value]
    if isinstance(value, bytes):
        return os.fsdecode(value)
    if isinstance(value, str | int | float | None):
        return value
    raise UserError(f"it holds a {type(value).__name__}; give text, numbers, lists and mappings alone")


# ------------------------------------------------------------------ key=value
def read_override(item: str) -> dict[str, Any]:
    """``key.sub=value`` as a nested mapping; the value is YAML in one line.

    What is no list, mapping or quoted text is one plain value to its end: ``#`` begins no comment.

    Raises:
        UserError: it is not of that form, or the value is no YAML.
    """
    dotted, equals, text = item.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"override {item!r} is not of the form key.sub=value")
    text = text.strip()
    try:
        if text[:1] in ("[", "{", '"', "'"):
            value = _copied(yaml.load(text, _Loader), _Budget(MAX_VALUES))
        else:
            loader = _Loader("")
            tag = loader.resolve(yaml.ScalarNode, text, (True, False))
            tag = "tag:yaml.org,2002:str" if tag == _MERGE else tag
            value = loader.construct_object(yaml.ScalarNode(tag, text))
    except Exception as error:
        raise UserError(f"config {dotted}: {text!r} is not readable YAML ({_reason(error)})") from None
    for key in reversed(keys):
        value = {key: value}
    return value


# ------------------------------------------------------------------ ${...}
_OPENING = re.compile(r"(\\*)\$\{")
_NAME = re.compile(r"(\.*)([^.\[\]:{}$\s]+(?:\.[^.\[\]:{}$\s]+|\[\d+\])*)\}")


@dataclass(frozen=True)
class _Open:
    """A text with ``${...}``: it stands at ``place`` of ``own``, the values whose keys it may name."""

    text: str
    place: tuple[Any, ...]
    own: Mapping[str, Any] | None


def opened(value: Any, own: Mapping[str, Any] | None, place: tuple[Any, ...] = ()) -> Any:
    """``value`` with every text that has ``${...}`` marked, for :func:`closed` to fill in after merging.

    Args:
        own: the values of the file that it is from; ``None``: it may name any key.
    """
    if isinstance(value, dict):
        return {k: opened(v, own, (*place, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [opened(v, own, (*place, i)) for i, v in enumerate(value)]
    return _Open(value, place, own) if isinstance(value, str) and "${" in value else value


def closed(root: dict[str, Any], size: int = 0) -> dict[str, Any]:
    """Merged values with every ``${...}`` filled in by what is now at the key that it names.

    Raises:
        UserError: it names no key of its file, itself or a function, or becomes too long.
    """
    budget = _Budget(MAX_LETTERS + 4 * size)

    def close(value: Any, within: tuple[_Open, ...]) -> Any:
        if within:  # it is named by ${...}
            budget.take(1 + (len(value) if isinstance(value, str) else 0))
        if isinstance(value, dict):
            return {k: close(v, within) for k, v in value.items()}
        if isinstance(value, list):
            return [close(v, within) for v in value]
        if not isinstance(value, _Open):
            return value
        if value in within or len(within) > MAX_DEPTH:
            raise UserError(f"{value.text!r} refers to itself; write the value")
        return fill(value, (*within, value))

    def fill(this: _Open, within: tuple[_Open, ...]) -> Any:
        text, done, at = this.text, "", 0
        for opening in _OPENING.finditer(text):
            if opening.start() < at:
                continue
            slashes = opening[1]
            done += text[at : opening.start()] + "\\" * (len(slashes) // 2)
            at = opening.end()
            if len(slashes) % 2:  # \${ is the text ${
                done += "${"
                continue
            named = _NAME.match(text, at)
            if named is None:
                raise UserError(
                    f"{text!r}: ${{...}} can only be another key of the file, no function or environment "
                    r"variable; write \${ for the text itself"
                )
            at = named.end()
            value = close(_named(root, this, named), within)
            if opening.start() == 0 and at == len(text):
                return value
            if isinstance(value, dict | list):
                raise UserError(f"{text!r} puts a list or a mapping into a text; name a single value")
            done += str(value)
            budget.take(1 + len(done))
        return done + text[at:]

    return close(root, ())


def _named(root: dict[str, Any], this: _Open, named: re.Match[str]) -> Any:
    dots, path = named[1], named[2]
    keys = [int(part[1:-1]) if part[0] == "[" else part for part in re.findall(r"[^.\[\]]+|\[\d+\]", path)]
    above = this.place[: len(this.place) - len(dots)] if dots else ()
    try:
        if len(dots) > len(this.place):
            raise KeyError(path)
        if this.own is not None:
            _at(this.own, [*above, *keys])
        return _at(root, [*above, *keys])
    except (KeyError, IndexError, TypeError):
        raise UserError(
            f"{this.text!r} names no key of its file; correct it, or write \\${{ for the text itself"
        ) from None


def _at(value: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        if isinstance(value, str):
            raise KeyError(key)
        if isinstance(value, list):
            key = int(key)
        value = value[key]
    return value


# ------------------------------------------------------------------ writing
def write(value: Mapping[str, Any]) -> str:
    """Plain values as YAML text that :func:`read` and :func:`closed` give back, keys in their order."""
    return yaml.dump(
        _escaped(dict(value)), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(v) for v in value]
    if isinstance(value, str):
        return _OPENING.sub(lambda found: "\\" * (2 * len(found[1]) + 1) + "${", value)
    return value
