"""Named settings: ``preset: paper`` in YAML, ``ldm invert --preset paper``, ``ldm.invert(preset="paper")``.

A preset lies between the model's own settings and everything that a user gives. It comes with the package, in
``ldm/assets/presets/NAME.yaml``, or is a YAML file of the user's own::

    about: What it is, in one line
    source: Whose method it is, or where its gain was measured
    settings: {optim: {lr: 0.005, schedule: constant}, trainer: {max_steps: 5000}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import load_yaml, unknown_key
from ldm.errors import UserError
from ldm.paths import PACKAGE, expanded
from ldm.shorthand import spelled

FOLDER = PACKAGE / "assets" / "presets"
KEY = "preset"
_KEYS = ("about", "source", "settings")


@dataclass(frozen=True)
class Preset:
    """A preset as its file says it.

    Attributes:
        name: The name, or the path of a user's own file.
        about: What it is, in one line.
        source: Whose method it is, or where its gain was measured.
        settings: Settings by their full names.
    """

    name: str
    about: str
    source: str
    settings: dict[str, Any]


def names() -> tuple[str, ...]:
    """The presets that come with the package, in the order of the alphabet."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read(name: str | Path) -> Preset:
    """A preset by its name, or a YAML file of the user's own.

    Raises:
        UserError: there is no such preset or file, or it has another key.
    """
    text = str(name)
    own = text.endswith((".yaml", ".yml"))
    if not own and text not in names():
        raise UserError(f"there is no preset {text!r}; use {', '.join(names())}, or a .yaml file of settings")
    values = load_yaml([expanded(text) if own else FOLDER / f"{text}.yaml"])
    if own and not set(values) & set(_KEYS):
        values = {"settings": values}  # settings alone
    for key in values:
        if key not in _KEYS:
            raise unknown_key(str(key), _KEYS, f"the preset {text}: ")
    settings = values.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise UserError(f"the preset {text} has settings {settings!r}; give a mapping")
    if KEY in settings:
        raise UserError(f"the preset {text} names another preset; write out its settings")
    return Preset(text, str(values.get("about") or ""), str(values.get("source") or ""), spelled(settings))


def layered(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers of settings, in which the preset that one of them names is the second one.

    Args:
        layers: The model's own settings first, then what the user gives; later ones win. The last one that
            names a preset chooses it, and ``null`` chooses none.

    Raises:
        UserError: there is no such preset.
    """
    found = [dict(layer) for layer in layers]
    chosen = None
    for layer in found:
        if KEY in layer:
            chosen = layer.pop(KEY)
    if chosen is None:
        return found
    if not isinstance(chosen, str | Path):
        raise UserError(f"preset is {chosen!r}; give the name of one, such as {' or '.join(names())}")
    return [*found[:1], read(chosen).settings, *found[1:]]
