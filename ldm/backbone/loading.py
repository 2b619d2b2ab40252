"""Finding and loading a model: a shipped one by name, one's own by folder, YAML, mapping or weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.backbone.recognize import recognize
from ldm.config import ASSETS, load_yaml, resolve, unknown_key
from ldm.errors import UserError
from ldm.io import diffusers_layout
from ldm.io.checkpoints import (
    in_precision,
    is_weight_file,
    load_model_weights,
    prefer_ema,
    public_names,
    read_state_dict,
)
from ldm.io.files import kind_of, read_head
from ldm.official import config as legacy
from ldm.paths import expanded, found
from ldm.shorthand import spelled

log = logging.getLogger(__name__)

SECTIONS = ("model", "inversion")
#: endings of weights; a file that has one is never read as a config
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
#: keys of a part's ``params`` that name files, which may lie beside the config
FILES = ("vocab_file", "version", "tokenizer")


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/config.yaml") if _is_model(path))


def _is_model(path: Path) -> bool:
    return "model:" in path.read_text().splitlines()


def find(source: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """The sections of a model's config, and the folder that its relative paths start from.

    A checkpoint file may have a config beside it, ``model.yaml`` beside ``model.ckpt``; else its config is
    told from the weights, as that of a diffusers folder.

    Raises:
        UserError: no such model, with the names of those that there are, or weights of another kind.
    """
    if isinstance(source, Mapping):
        values, folder = dict(source), Path(".")
    elif not isinstance(source, str | Path):  # YAML has values of any kind
        raise UserError(f"the model is {source!r}; give a name or a path, as text")
    else:
        path = found(source)
        named = ASSETS / str(source) / "config.yaml"
        beside = config_beside(path)
        if beside is not None:
            return _with_weights(beside, path), path.parent
        if diffusers_layout.is_folder(path) or is_weight_file(path):
            return _recognized(path), path.parent
        _refuse_other_files(path)
        if path.is_dir():
            path = path / "config.yaml"
        elif not path.suffix and named.is_file():
            path = named
        if not path.is_file():
            raise UserError(
                f"no model {str(source)!r}; give one of {', '.join(shipped()) or 'none shipped'}, "
                "a model folder, a YAML file, or a checkpoint file"
            )
        values, folder = load_yaml([path]), path.parent
    if legacy.is_official(values):
        values = legacy.model_sections(values)
    if "model" not in values:
        raise UserError(
            f"{source} is not the config of a text-to-image model: it has no 'model:' section; give one of "
            f"{', '.join(shipped())}, or a file that has one"
        )
    for key in values:
        if key not in SECTIONS:
            raise unknown_key(str(key), SECTIONS, "")
    return values, folder


def config_beside(path: Path) -> Path | None:
    """The config of a checkpoint file that lies beside it under its name, as web UIs look for it."""
    if not path.is_file() or not is_weight_file(path):
        return None
    for beside in (path.with_suffix(suffix) for suffix in (".yaml", ".yml")):
        if beside.is_file():
            values = load_yaml([beside])
            if "model" in values or legacy.is_official(values):
                return beside
            log.warning("%s lies beside %s and is no config of a model: not read", beside, path.name)
    return None


def _with_weights(config: Path, weights: Path) -> dict[str, Any]:
    """A config's sections, its checkpoint replaced."""
    try:
        values, _ = find(config)
    except UserError as error:
        raise UserError(f"{config}, which lies beside {weights.name}: {error}") from error
    return {**values, "model": {**values["model"], "checkpoint": weights.name}}


def _refuse_other_files(path: Path) -> None:
    """:class:`UserError` that names what is there and is neither weights nor a config."""
    if path.is_dir() or not path.exists() or path.suffix.lower() in (".yaml", ".yml"):
        return
    kind = kind_of(read_head(path))
    if kind is None and path.suffix.lower() in WEIGHT_SUFFIXES:
        kind = ("no checkpoint of torch or safetensors", "fetch it again")
    if kind is not None:
        raise UserError(f"{path} is {kind[0]}: {kind[1]}")


def _recognized(path: Path) -> dict[str, Any]:
    """The config of a checkpoint file or a diffusers folder, which is its ``checkpoint``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in read_weights(path).items()}
    sections = recognize(shapes, str(path))
    if path.is_dir():
        sections["model"] = diffusers_layout.configured(sections["model"], path)
    sections["model"]["checkpoint"] = path.name
    return sections


def read_weights(path: Path, use_ema: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint file or a diffusers folder, under the public names, mapped.

    Averages (EMA) that a file holds of its whole UNet are given for the UNet's weights, unless
    ``use_ema`` is false.
    """
    if path.is_dir():
        return diffusers_layout.read_state_dict(path)
    state = public_names(read_state_dict(path), str(path))
    return prefer_ema(state, str(path)) if use_ema else state


def inversion_defaults(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Settings that suit this model: the ``inversion:`` section of its config."""
    return spelled(find(source)[0].get("inversion") or {}, tell=False)


def load(
    config_or_path: str | Path | Mapping[str, Any] | ModelConfig = "emoji",
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    *,
    dtype: torch.dtype | None = torch.float32,
    use_ema: bool = True,
    parameterization: str | None = None,
    image_size: int | None = None,
    clip_skip: int | None = None,
    strict: bool = True,
) -> LatentDiffusion:
    """A frozen text-to-image model, ready to sample from and to invert into.

    Args:
        config_or_path: a shipped model's name ("emoji"), a model folder with ``config.yaml``, a YAML
            file (ours or an official one), its mapping, or a ``ModelConfig``; or weights alone, whose
            kind is recognised: a ``.safetensors`` or ``.ckpt`` file in the public layout, or a
            diffusers folder.
        checkpoint: such weights, instead of the config's own.
        device: where to put it.
        dtype: precision of the weights; ``None`` keeps the file's. Weights that have it in the file
            already are mapped from it, not copied.
        use_ema: take the averaged weights (EMA) of the UNet where the file has them all.
        parameterization: what the UNet returns (eps, v, x0), if the config is to be overruled.
        image_size: pixels a side, if the config is to be overruled.
        clip_skip: which of the last blocks of a CLIP text encoder is used, as web UIs count: 1 the last
            one; by default the config's.
        strict: refuse weights that lack some of the model's or have others; else that is warned of, and
            what is missing is random, the same at every load.

    Raises:
        UserError: no such model, a config with an unknown key, or weights of another model.
    """
    if isinstance(config_or_path, ModelConfig):
        config, folder, defaults = config_or_path, Path("."), {}
    else:
        if isinstance(config_or_path, str | Path):
            config_or_path = found(config_or_path)
        values, folder = find(config_or_path)
        defaults = spelled(values.get("inversion") or {}, tell=False)
        config = resolve(ModelConfig, values["model"], "model.")
        alone = not isinstance(config_or_path, Mapping) and is_weight_file(Path(config_or_path))
        alone = alone and config_beside(Path(config_or_path)) is None  # type: ignore[arg-type]
        if alone and config.parameterization == "v" and parameterization is None:
            log.warning(
                "%s is taken for Stable Diffusion 2 with v-prediction at 768 pixels; the base model of 512 "
                "pixels has the same shapes: give it as the checkpoint of "
                "configs/stable-diffusion/v2-base.yaml",
                config_or_path,
            )
    config = replace(
        config,
        parameterization=parameterization or config.parameterization,
        image_size=image_size or config.image_size,
    )
    weights = (
        found(checkpoint)
        if checkpoint
        else folder / expanded(config.checkpoint)
        if config.checkpoint
        else None
    )
    if weights is None:
        raise UserError("this config names no checkpoint; give one (checkpoint=..., --checkpoint FILE)")
    config = in_folder(config, folder)
    model = build(config, empty=True) if strict else _random(config, dtype)
    state = in_precision(partial(read_weights, weights, use_ema), dtype)
    load_model_weights(model.parts, state, source=str(weights), strict=strict)
    model.inversion_defaults = defaults
    model.text.use_clip_skip(clip_skip)
    return model.freeze().to(device)


def _random(config: ModelConfig, dtype: torch.dtype | None) -> LatentDiffusion:
    """A model of this config with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config)
    for part in model.parts.values():
        part.to(dtype)
    return model


def in_folder(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config with the files of its text conditioner found beside it."""
    params = dict(config.text.get("params") or {})
    beside = {k: str(folder / expanded(str(v))) for k, v in params.items() if k in FILES and v}
    params |= {key: path for key, path in beside.items() if Path(path).exists()}
    return replace(config, text={**config.text, "params": params})
