"""YAML configs: merging, dot-list overrides, typed resolution, and import by name.

The only place that imports by name. A config is resolved once, at the edge, into frozen dataclasses;
an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ldm.errors import UserError

T = TypeVar("T")

#: folder of the models, judges and vocabularies that come with the package
ASSETS = Path(__file__).parent / "assets"

#: What a config may name as a ``target``. A YAML file comes from anywhere: it chooses among these and
#: imports nothing else. A new class that configs should build is added here.
TARGETS = frozenset(
    {
        "ldm.data.pictures.EmojiPictures",
        "ldm.data.pictures.FolderPictures",
        "ldm.models.autoencoder.AutoencoderKL",
        "ldm.models.unet.UNetModel",
        "ldm.text.bert.BertConditioner",
        "ldm.text.clip.ClipConditioner",
        "ldm.text.clip.OpenClipConditioner",
    }
)

#: bytes of a file's name that are no UTF-8, as Python has them
_SURROGATES = re.compile("[\ud800-\udfff]")
#: bounds of a YAML file; the official ones have 4 kB and 10 levels, a list of 100,000 concepts 150 MB
MAX_BYTES, MAX_DEPTH = 2**28, 100


def load_yaml(paths: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge YAML files from left to right, then ``key.sub=value`` overrides; resolve ``${...}``.

    Raises:
        UserError: a file is missing, is not YAML or claims to be endless, or an override is not
            ``key=value``.
    """
    from omegaconf import OmegaConf

    merged = OmegaConf.create()
    for path in map(Path, paths):
        if not path.is_file():
            what = "is a folder, a pipe or a device" if path.exists() else "does not exist"
            raise UserError(f"config {path} {what}; give the path of a YAML file")
        try:
            _refuse_deep(path)
            # every node takes a byte or more: a long list passes, what aliases blow up does not
            limit = max(10_000, path.stat().st_size)
            loaded = OmegaConf.load(path, max_yaml_expanded_nodes=limit)
            if not OmegaConf.is_dict(loaded):
                raise UserError(f"config {path} must be a mapping of keys to values at its top level")
            merged = OmegaConf.merge(merged, loaded)  # type: ignore[assignment]
        except UserError:
            raise
        except Exception as error:  # a broken number, say, is no YAMLError
            raise UserError(f"config {path} is not readable YAML ({_reason(error)}); correct it") from None
    for item in overrides:
        if "=" not in item:
            raise UserError(f"override {item!r} is not of the form key.sub=value")
    try:
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(list(overrides)))  # type: ignore[assignment]
        plain = OmegaConf.to_container(merged, resolve=True)
    except Exception as error:
        raise UserError(f"config: {_reason(error)}") from None
    return typing.cast(dict[str, Any], _unicode(plain, _to_text))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _refuse_deep(path: Path) -> None:
    """A file's size and nesting, before it is read: a reader of YAML may call itself at every level."""
    import yaml

    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"config {path} is too large for one; give a YAML file of settings")
    depth = 0
    with path.open("rb") as stream:
        for event in yaml.parse(stream, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"config {path} is nested more than {MAX_DEPTH} levels deep; correct it")


def merge(base: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key and level by level; the later one wins.

    ``None`` in place of a mapping is an empty section: nothing is given there.
    """
    merged = dict(base)
    for other in others:
        for key, value in other.items():
            old = merged.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping | None):
                value = merge(old, value or {})
            merged[key] = value
    return merged


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": x}`` as ``{"a": {"b": x}}``; keys whose value is ``None`` are left out."""
    result: dict[str, Any] = {}
    for dotted, value in values.items():
        if value is not None:
            for key in reversed(dotted.split(".")):
                value = {key: value}
            result = merge(result, value)
    return result


def dump_yaml(value: Mapping[str, Any]) -> str:
    """A config as YAML text, keys in their given order."""
    import yaml

    return yaml.safe_dump(_unicode(dict(value), _to_bytes), sort_keys=False, allow_unicode=True)


def _unicode(value: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of every key and value. YAML holds Unicode, and a file's name may be other bytes: in Python
    a string with lone surrogates, in YAML binary."""
    if isinstance(value, Mapping):
        return {change(k): _unicode(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unicode(v, change) for v in value]
    return change(value)


def _to_bytes(value: Any) -> Any:
    return os.fsencode(value) if isinstance(value, str) and _SURROGATES.search(value) else value


def _to_text(value: Any) -> Any:
    return os.fsdecode(value) if isinstance(value, bytes) else value


def to_plain(config: Any) -> dict[str, Any]:
    """A resolved dataclass as plain mappings, for writing back as YAML."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))


def unknown_key(key: str, known: Iterable[str], where: str) -> UserError:
    """The error for a key nobody reads: names the nearest known one."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return UserError(f"unknown config key {where + key!r}; {hint}")


def resolve(
    cls: type[T], values: Mapping[str, Any] | None, where: str = "", default: T | None = None
) -> T:
    """Build the frozen dataclass ``cls`` from a mapping, checking every key and type.

    A section of which only some keys are given keeps, for the others, what its field's default says: not
    the defaults of the section's class.

    Args:
        cls: a dataclass; nested dataclasses and ``X | None`` are followed.
        values: plain mapping, as ``load_yaml`` returns it; ``None`` is an empty section.
        where: prefix for messages, such as ``"training."``.
        default: gives the values of keys that are not given; the class's defaults if ``None``.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing key, or a wrong type.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise UserError(f"config {where.rstrip('.') or 'file'} must be a mapping, not {values!r}")
    hints = _hints(cls)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_key(str(key), fields, where)
    given = {k: _convert(v, hints[k], where + k, _default(fields[k], default)) for k, v in values.items()}
    if default is not None:
        return dataclasses.replace(default, **given)  # type: ignore[type-var]
    for name, field in fields.items():
        if _default(field) is dataclasses.MISSING and name not in given:
            raise UserError(f"config lacks {where + name!r}; add it")
    return cls(**given)


def _default(field: dataclasses.Field[Any], of: Any = None) -> Any:
    """A field's default: its value in ``of``, else the one it is declared with; ``MISSING`` if none."""
    if of is not None:
        return getattr(of, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields; once, for a list of thousands of configs."""
    return typing.get_type_hints(cls)


def _convert(value: Any, hint: Any, where: str, default: Any = None) -> Any:
    """``value`` as the type ``hint``; ``default`` fills the keys that a section leaves out."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for arg in (a for a in args if a is not type(None)):
            try:
                return _convert(value, arg, where, default)
            except UserError as error:
                failure = error
        raise failure
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return resolve(hint, value, where + ".", default if isinstance(default, hint) else None)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(
                f"config {where} is {value!r}; choose one of {', '.join(map(str, args))}"
            )
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"config {where} is {value!r}; give a list")
        items = [_convert(v, args[0], f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict or hint is dict:
        if value is None:  # an empty section
            return {}
        if not isinstance(value, Mapping):
            raise UserError(f"config {where} is {value!r}; give a mapping")
        return dict(value)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML 1.1 reads "1e-3" as a string
            return float(value)
        except ValueError:
            pass
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, bool) and hint is not bool or not isinstance(value, hint):
        raise UserError(f"config {where} is {value!r}; give a {hint.__name__}")
    return value


def locate(target: str) -> Any:
    """The class of a dotted name, such as ``ldm.models.unet.UNetModel``; one of ``TARGETS``.

    Raises:
        UserError: any other name; nothing has been imported then.
    """
    if target not in TARGETS:
        near = difflib.get_close_matches(target, sorted(TARGETS), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(TARGETS))}"
        raise UserError(f"config target {target!r} is refused: a config cannot run it; {hint}")
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config target {target!r} cannot be imported ({error})") from None


def instantiate(node: Mapping[str, Any], **extra: Any) -> Any:
    """Call ``node["target"]`` with ``node["params"]`` (and ``extra``), checking the names first.

    Raises:
        UserError: no target, a target that a config may not name, an unknown parameter, or values that
            the class does not take.
    """
    if not isinstance(node, Mapping) or "target" not in node:
        raise UserError(f"config node {node!r} needs a 'target': the dotted name of a class")
    for key in node:
        if key not in ("target", "params"):
            raise unknown_key(str(key), ("target", "params"), f"{node['target']}: ")
    factory = locate(str(node["target"]))
    params = {**(node.get("params") or {}), **extra}
    signature = inspect.signature(factory)
    named = set(signature.parameters)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for key in params:
            if key not in named:
                raise unknown_key(str(key), named, f"{node['target']}: ")
    try:
        signature.bind(**params)
    except TypeError as error:
        raise UserError(f"config {node['target']}: {error}") from None
    try:
        return factory(**params)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor makes of values that no type has checked
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"config {node['target']} cannot be built: {reason}") from error
