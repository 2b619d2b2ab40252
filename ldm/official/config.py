"""The official YAML files (Gal et al. 2022; Rombach et al. 2022; Stable Diffusion 1 and 2) in our terms.

``table`` is data: official names and ours. Here it is walked. A target that is not in the table is
refused, a parameter that is not in it is an error that names the nearest, and nothing that a YAML file
names is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.config import merge, unknown_key
from ldm.errors import UserError
from ldm.official.table import FILE, TABLE, Choice, Inside, Node, Rules
from ldm.shorthand import spelled

#: what an official file consists of
SECTIONS = frozenset(FILE)
#: settings that belong to one word and not to a model
OF_A_WORD = frozenset(
    {"model", "placeholder", "init", "more_words", "subject", "images", "init_embedding", "num_vectors",
     "progressive", "formats"}
)  # fmt: skip


# ------------------------------------------------------------------ translation
def is_official(values: Mapping[str, Any]) -> bool:
    """Whether a config, or the overrides of one, has the official form."""
    model = values.get("model")
    nested = isinstance(model, Mapping) and not {"target", "params", "base_learning_rate"}.isdisjoint(model)
    return nested or "data" in values or "lightning" in values


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``InversionConfig`` from an official config, or from a part of one.

    Of several ``placeholder_strings`` those are learned that the prompts hold: the data set's
    ``placeholder_token``, which may be a text with several of them, else "*", else the first one; caption
    files may hold more.

    Keys beside ``model``, ``data`` and ``lightning`` are taken for ours and win.

    Args:
        values: as ``load_yaml`` returns it.

    Returns:
        Plain nested values; ``model`` is ``{"model": <the keys of ModelConfig>}`` where the file
        describes one.

    Raises:
        UserError: a target or a parameter that the table does not know, or a value that is not
            possible here.
    """
    official = {key: value for key, value in values.items() if key in SECTIONS}
    found = _translate(official, FILE, "")
    size, latent_size = found.pop("size", None), found.pop("latent_size", None)
    if "model" in found and "autoencoder" in found["model"]:
        levels = found["model"]["autoencoder"]["params"].get("ch_mult")
        if size is None and isinstance(latent_size, int) and isinstance(levels, list):
            size = latent_size * 2 ** max(0, len(levels) - 1)
        if size is not None:
            found["model"]["image_size"] = size
        found["model"] = {"model": found["model"]}
    else:
        found.pop("model", None)
    _choose_words(found)
    rate = found.pop("model_lr", 0.0)
    if found.pop("unfreeze_model", False):
        found["model_lr"] = rate
    found["formats"] = ["safetensors", "pt"]
    return merge(found, spelled({key: value for key, value in values.items() if key not in SECTIONS}))


def _choose_words(found: dict[str, Any]) -> None:
    """Settle on the placeholder that the prompts hold, the words beside it, and their inits."""
    said = [found.pop(key) for key in ("image_words", "image_vectors") if key in found]
    if said and said[0] != said[-1]:
        raise UserError("per_image_tokens differs between personalization_config and data; set both alike")
    if said and said[0]:
        _put(found, "captions.per_image_tokens", said[0])
    words, inits = found.pop("placeholders", []), found.pop("inits", [])
    token = str(found.pop("placeholder_token", None) or "")
    held = [word for word in words if word and word in token]
    if token and words and not held:
        raise UserError(
            f"the data set's placeholder_token {token!r} is not the word that is learned, "
            f"{', '.join(map(repr, words))}; leave it out"
        )
    if words:
        word = token if token in words else held[0] if held else "*" if "*" in words else words[0]
        found["placeholder"] = word
        if token not in ("", word):
            found["subject"] = token
        # a list of one is for the word that is learned, as --init_word gives it
        of = {word: inits[0]} if len(inits) == 1 else dict(zip(words, inits, strict=False))
        inits = [of[word]] if word in of else []
        others = {other: of.get(other) for other in words if other != word}
        if others:
            found["more_words"] = others
    if inits:
        found["init"] = inits[0]


def model_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections ``model`` and ``inversion`` of a model's config, as ``ldm.load`` reads them.

    Arguments and errors as ``settings``; what belongs to one word is left out.
    """
    found = settings(values)
    if "model" not in found:
        raise UserError("this official YAML describes no model: it lacks model.params.first_stage_config")
    inversion = {key: value for key, value in found.items() if key not in OF_A_WORD}
    return {**found["model"], "inversion": inversion}


def _translate(params: Mapping[str, Any] | None, rules: Rules, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if not isinstance(params, Mapping | None):
        raise UserError(f"config {where.rstrip('.')} must be a mapping, not {params!r}")
    for name, value in (params or {}).items():
        if name not in rules:
            raise unknown_key(str(name), rules, where)
        rule, place = rules[name], f"{where}{name}"
        if isinstance(rule, str):
            _put(found, rule, value)
        elif isinstance(rule, Inside):
            found = merge(found, _translate(value, rule.rules, f"{place}."))
        elif isinstance(rule, Choice):
            key = tuple(value) if isinstance(value, list) else value
            if key not in list(rule.values):  # a list: the value may be anything
                known = ", ".join(map(repr, rule.values))
                raise UserError(f"config {place} is {value!r}; here it can only be {known}")
            if rule.key:
                _put(found, rule.key, rule.values[key])
        elif isinstance(rule, Node):
            node = _node(value, rule, place)
            if rule.key:
                _put(found, rule.key, node)
            elif rule.key == "":
                found = merge(found, node["params"])
    return found


def _node(node: Any, rule: Node, where: str) -> dict[str, Any]:
    """``{target, params}`` of ours for one of theirs."""
    if not isinstance(node, Mapping):
        raise UserError(f"config {where} must be a mapping with a target, not {node!r}")
    for key in node:
        if key not in ("target", "params"):
            raise unknown_key(str(key), ("target", "params"), f"{where}.")
    name = node.get("target", rule.targets[0])
    if name not in rule.targets:
        raise UserError(f"config {where}: target {name!r} is refused; use {' or '.join(rule.targets)}")
    if not rule.read:
        return {}
    target = TABLE[name]
    params = _translate(node.get("params"), target.rules, f"{where}.params.")
    return {"target": target.ours, "params": target.adapt(params)}


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    """Store under a dotted key; a section that is empty or missing is made."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(found.get(section), dict):
            found[section] = {}
        found = found[section]
    found[last] = value


# ------------------------------------------------------------------ the command line's options
_WORD = "model.params.personalization_config.params"
#: option of the official command line -> where it goes, and whether it is the one item of a list
OPTIONS: dict[str, tuple[str, bool]] = {
    "data_root": ("data.params.train.params.data_root", False),
    "placeholder_string": (f"{_WORD}.placeholder_strings", True),
    "init_word": (f"{_WORD}.initializer_words", True),
    "embedding_manager_ckpt": (f"{_WORD}.embedding_manager_ckpt", False),
}


def with_options(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an official config with those of ``OPTIONS`` that are given (not ``None``)."""
    result = _copied(values)
    for option, (place, listed) in OPTIONS.items():
        value = options.get(option)
        if value is not None:
            _put(result, place, [value] if listed else value)
    return result


def _copied(value: Any) -> Any:
    return {k: _copied(v) for k, v in value.items()} if isinstance(value, Mapping) else value
