"""Finding and loading a model: the shipped ones by name, one's own by folder, YAML or mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm import legacy
from ldm.config import ASSETS, load_yaml, resolve, unknown_key
from ldm.errors import UserError
from ldm.io.checkpoints import load_model_weights, read_state_dict
from ldm.model import LatentDiffusion, ModelConfig, build

SECTIONS = ("model", "inversion")


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.yaml") if _is_model(path))


def _is_model(path: Path) -> bool:
    return "model:" in path.read_text().splitlines()


def find(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """The sections of a model's config, and the folder that its relative paths start from.

    Raises:
        UserError: no such model, with the names of those that there are.
    """
    if isinstance(source, Mapping):
        values, folder = dict(source), Path(".")
    else:
        path = Path(source)
        named = ASSETS / str(source) / "config.yaml"
        if path.is_dir():
            path = path / "config.yaml"
        elif not path.suffix and named.is_file():
            path = named
        if not path.is_file():
            raise UserError(
                f"no model {str(source)!r}; give one of {', '.join(shipped()) or 'none shipped'}, "
                "a model folder or a YAML file"
            )
        values, folder = load_yaml([path]), path.parent
    if legacy.is_official(values):
        values = legacy.model_sections(values)
    for key in values:
        if key not in SECTIONS:
            raise unknown_key(str(key), SECTIONS, "")
    if "model" not in values:
        raise UserError(f"{source} has no 'model:' section; is it the config of a model?")
    return values, folder


def inversion_defaults(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Settings that suit this model: the ``inversion:`` section of its config."""
    return dict(find(source)[0].get("inversion") or {})


def load(
    config_or_path: str | Path | Mapping[str, Any] | ModelConfig = "emoji",
    checkpoint: str | Path | None = None,
    device: str = "cpu",
) -> LatentDiffusion:
    """A frozen text-to-image model, ready to sample from and to invert into.

    Args:
        config_or_path: a shipped model's name ("emoji"), a model folder with ``config.yaml``, a YAML
            file (ours or an official one), its mapping, or a ``ModelConfig``.
        checkpoint: ``.safetensors`` or ``.ckpt`` in the public layout, instead of the config's own.
        device: where to put it; weights are float32.

    Raises:
        UserError: no such model, a config with an unknown key, or weights of another model.
    """
    if isinstance(config_or_path, ModelConfig):
        config, folder, defaults = config_or_path, Path("."), {}
    else:
        values, folder = find(config_or_path)
        defaults = dict(values.get("inversion") or {})
        config = resolve(ModelConfig, values["model"], "model.")
    model = build(in_folder(config, folder))
    weights = (
        Path(checkpoint)
        if checkpoint
        else folder / config.checkpoint
        if config.checkpoint
        else None
    )
    if weights is None:
        raise UserError(
            "this config names no checkpoint; give one (checkpoint=..., --checkpoint FILE)"
        )
    load_model_weights(model.parts, read_state_dict(weights), source=str(weights))
    model.inversion_defaults = defaults
    return model.freeze().to(device)


def in_folder(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config with its vocabulary found beside it."""
    params = dict(config.text.get("params") or {})
    beside = folder / str(params.get("vocab_file", ""))
    if "vocab_file" in params and beside.is_file():
        params["vocab_file"] = str(beside)
        return replace(config, text={**config.text, "params": params})
    return config
