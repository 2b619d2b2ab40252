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
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ldm import yaml_text
from ldm.errors import UserError
from ldm.paths import found
from ldm.ranges import MAX_LAYERS, Range

T = TypeVar("T")

#: folder of the models, judges and vocabularies that come with the package
ASSETS = Path(__file__).parent / "assets"

#: What a config may name as a ``target``, by its short name. A YAML file comes from anywhere: it chooses
#: among these and imports nothing else. A new class that configs should build is added here.
TYPES = {
    "AutoencoderKL": "ldm.models.autoencoder.AutoencoderKL",
    "BertConditioner": "ldm.text.bert.BertConditioner",
    "ClipConditioner": "ldm.text.clip.ClipConditioner",
    "EmojiPictures": "ldm.emoji.pictures.EmojiPictures",
    "FolderPictures": "ldm.pretraining.sources.FolderPictures",
    "MixedPictures": "ldm.pretraining.mixed.MixedPictures",
    "OpenClipConditioner": "ldm.text.clip.OpenClipConditioner",
    "UNetModel": "ldm.models.unet.UNetModel",
}
#: dotted names, which files may hold in place of the short ones; those of modules that have moved stay valid
TARGETS = {
    **{dotted: dotted for dotted in TYPES.values()},
    "ldm.data.mixed.MixedPictures": TYPES["MixedPictures"],
    "ldm.data.pictures.EmojiPictures": TYPES["EmojiPictures"],
    "ldm.data.pictures.FolderPictures": TYPES["FolderPictures"],
}


#: parameters that are a number of layers
LAYERS = ("n_layer", "layers", "num_res_blocks", "transformer_depth")


def load_yaml(paths: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge YAML files from left to right, then ``key.sub=value`` overrides; then fill in ``${...}``.

    A file's ``${...}`` names keys of that file, and becomes what is there after merging; that of an
    override names any key.

    Raises:
        UserError: a file is missing, is not YAML or claims to be endless, an override is not
            ``key=value``, or a ``${...}`` names no key.
    """
    files = [found(path) for path in paths]
    merged: dict[str, Any] = {}
    for path in files:
        own = yaml_text.read(path)
        merged = merge(merged, yaml_text.opened(own, own))
    for item in overrides:
        merged = merge(merged, yaml_text.opened(yaml_text.read_override(item), None))
    try:
        return yaml_text.closed(merged, sum(path.stat().st_size for path in files))
    except UserError as error:
        raise UserError(f"{' '.join(['config', *map(str, files)])}: {error}") from None


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
    """A config as YAML text that ``load_yaml`` reads back as it is, keys in their given order."""
    return yaml_text.write(value)


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


def resolve(cls: type[T], values: Mapping[str, Any] | None, where: str = "", default: T | None = None) -> T:
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
    given = {}
    for key, value in values.items():
        section = isinstance(value, Mapping | None)  # of which some keys may be left out
        filled = _default(fields[key], default) if section else None
        given[key] = _convert(value, hints[key], where + key, filled)
    if default is not None:
        return dataclasses.replace(default, **given)  # type: ignore[type-var]
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise UserError(f"config lacks {where + name!r}; add it")
    return cls(**given)


def _default(field: dataclasses.Field[Any], of: Any = None) -> Any:
    """A field's default: its value in ``of``, else the one it is declared with; ``MISSING`` if none."""
    if of is not None:
        return getattr(of, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def recheck(config: Any) -> None:
    """What ``resolve`` refuses, of a config that was made in Python."""
    resolve(type(config), to_plain(config))


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields; once, for a list of thousands of configs."""
    return typing.get_type_hints(cls, include_extras=True)


@functools.cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return typing.get_origin(hint), typing.get_args(hint)


def _convert(value: Any, hint: Any, where: str, default: Any = None) -> Any:
    """``value`` as the type ``hint``; ``default`` fills the keys that a section leaves out."""
    origin, args = _parts(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        value = _convert(value, args[0], where, default)
        for limits in (limit for limit in args[1:] if isinstance(limit, Range)):
            limits.check(value, f"config {where}")
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
        if isinstance(value, hint):
            return value
        return resolve(hint, value, where + ".", default if isinstance(default, hint) else None)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"config {where} is {value!r}; choose one of {', '.join(map(str, args))}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"config {where} is {value!r}; give a list")
        if Ellipsis not in args and origin is tuple and len(value) != len(args):
            raise UserError(f"config {where} is {value!r}; give a list of {len(args)}")
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
            value = float(value)
        except (ValueError, OverflowError):
            pass
    if hint is float and isinstance(value, float):
        Range().check(value, f"config {where}")  # a number that is one, and not infinite
    if hint is Path and isinstance(value, str):
        return found(value)
    if hint is str and isinstance(value, bool | int | float):
        raise UserError(f"config {where} is {value!r}; give text: put it in quotes, as in '\"{value}\"'")
    if isinstance(value, bool) and hint is not bool or not isinstance(value, hint):
        raise UserError(f"config {where} is {value!r}; give a {hint.__name__}")
    return value


def locate(target: str) -> Any:
    """The class that a config names, as ``UNetModel`` or as ``ldm.models.unet.UNetModel``.

    Raises:
        UserError: a name that is neither in ``TYPES`` nor in ``TARGETS``; nothing has been imported then.
    """
    known = {**TYPES, **TARGETS}
    if target not in known:
        near = difflib.get_close_matches(target, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(TYPES))}"
        raise UserError(f"config target {target!r} is refused: a config cannot run it; {hint}")
    module, _, name = known[target].rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config target {target!r} cannot be imported ({error})") from None


def _refuse_endless(params: Mapping[str, Any], where: str) -> None:
    """A file of a few bytes may ask for a billion layers: their number is bounded."""
    for key, value in params.items():
        if key in LAYERS and isinstance(value, int | float) and not value <= MAX_LAYERS:
            raise UserError(f"config {where}: {key} is {value}; at most {MAX_LAYERS} layers are built")
        if isinstance(value, list | tuple) and len(value) > MAX_LAYERS:
            raise UserError(f"config {where}: {key} has {len(value)} items; at most {MAX_LAYERS} are read")


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
    _refuse_endless(params, str(node["target"]))
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
