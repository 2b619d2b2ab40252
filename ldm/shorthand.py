"""Short names of settings, the same in a YAML file, a list of concepts, ``--set`` and Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.config import merge
from ldm.errors import UserError

#: short name, as the options of ``ldm invert`` are called -> key of ``InversionConfig``
SHORT = {
    "name": "placeholder",
    "prompt": "prompts",
    "steps": "trainer.max_steps",
    "precision": "trainer.precision",
    "accelerator": "trainer.accelerator",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "guidance": "sample_scale",
}


def spelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with their full names: ``steps`` is ``trainer: {max_steps}``, and so is ``trainer.max_steps``.

    Raises:
        UserError: a setting is there by two of its names, with two values.
    """
    full: dict[str, Any] = {}
    for key, value in values.items():
        name = SHORT.get(key, str(key))  # YAML has keys of any kind
        if name == "prompts" and isinstance(value, str):
            value = [value]
        for part in reversed(name.split(".")):
            value = {part: value}
        if _clash(full, value):
            raise UserError(f"config {key!r} sets {name} once more, to another value; give it once")
        full = merge(full, value)
    return full


def _clash(one: Any, other: Any) -> bool:
    """Whether two nested mappings give a key two values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(_clash(one[key], other[key]) for key in one.keys() & other.keys())
    return one is not None and other is not None and one != other
