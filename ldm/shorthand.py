"""Other names of settings, the same in a YAML file, a list of concepts, ``--set`` and Python."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ldm.config import merge
from ldm.errors import UserError

log = logging.getLogger(__name__)

#: short name, as the options of ``ldm invert`` are called -> key of ``InversionConfig``
SHORT = {
    "name": "placeholder",
    "prompt": "show.prompts",
    "guidance": "show.scale",
    "templates": "captions.templates",
    "steps": "trainer.max_steps",
    "precision": "trainer.precision",
    "accelerator": "trainer.accelerator",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
}
#: key that a setting had before its section was there -> its key
OLD = {
    "prompts": "show.prompts",
    "samples_per_prompt": "show.samples_per_prompt",
    "sample_steps": "show.steps",
    "sample_scale": "show.scale",
    "sampler": "show.sampler",
    "monitor_every": "stop.monitor_every",
    "patience": "stop.patience",
    "min_improvement": "stop.min_improvement",
    "allow_untrained": "stop.allow_untrained",
    "fit": "pictures.fit",
    "background": "pictures.background",
    "interpolation": "pictures.interpolation",
    "flip_p": "pictures.flip_p",
    "coarse_class": "captions.coarse_class",
    "per_image_tokens": "captions.per_image_tokens",
    "mixing_prob": "captions.mixing_prob",
    "checkpointing": "compute.checkpointing",
    "compiled": "compute.compiled",
    "cuda_graphs": "compute.cuda_graphs",
}
#: switches of ``compat`` that files of older runs may hold; they changed nothing that is learned
GONE = ("edits_ids", "unsorted")
_told: set[str] = set()


def spelled(values: Mapping[str, Any], *, tell: bool = True) -> dict[str, Any]:
    """Settings by their full names: ``steps`` is ``trainer: {max_steps}``, and so is ``trainer.max_steps``.

    Args:
        values: settings by any of their names; those by their full names come out as they are.
        tell: warn of each old name, the first time that it is met. Files that the program has written
            itself are read without.

    Raises:
        UserError: a setting is there by two of its names, with two values.
    """
    full: dict[str, Any] = {}
    for key, value in values.items():
        name = _full_name(key, value)
        if tell and name != key and key in (*OLD, "captions"):
            _tell(str(key), name)
        if name == "per_layer" and isinstance(value, bool):
            name, value = "word.kind", "per_layer" if value else "plain"
        if name == "show.prompts" and isinstance(value, str):
            value = [value]
        for part in reversed(name.split(".")):
            value = {part: value}
        if _clash(full, value):
            raise UserError(f"config {key!r} sets {name} once more, to another value; give it once")
        full = merge(full, value)
    if isinstance(full.get("compat"), Mapping):
        full["compat"] = {key: value for key, value in full["compat"].items() if key not in GONE}
    return full


def _full_name(key: Any, value: Any) -> str:
    if key == "captions" and not isinstance(value, Mapping):  # whether to use files, before it was a section
        return "captions.files"
    if key == "word" and isinstance(value, str):  # a kind by its defaults
        return "word.kind"
    if key == "shared_steps":  # before it was a setting of its kind
        return "word.shared_steps"
    return SHORT.get(key) or OLD.get(key) or str(key)  # YAML has keys of any kind


def _tell(old: str, name: str) -> None:
    if old not in _told:
        _told.add(old)
        log.warning("the setting %s is called %s now; the old name still works", old, name)


def _clash(one: Any, other: Any) -> bool:
    """Whether two nested mappings give a key two values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(_clash(one[key], other[key]) for key in one.keys() & other.keys())
    return one is not None and other is not None and one != other
