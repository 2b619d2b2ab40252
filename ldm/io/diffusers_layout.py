"""Models in the layout of diffusers: a folder with ``model_index.json`` and one folder a part.

Read only: names are translated to those of the public checkpoints (the tables below), sizes are told
from the shapes as for any checkpoint, and the small JSON files say what shapes cannot: attention heads,
noise schedule, what the UNet predicts, the latents' scale. ``text_encoder/`` is a Hugging Face folder,
which ``ldm.text.clip.ClipConditioner`` reads on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.errors import UserError
from ldm.io import checkpoints
from ldm.io.checkpoints import AUTOENCODER, TEXT, UNET
from ldm.io.files import opened

#: bytes of a JSON file; the index of the largest model has 5 MB
MAX_JSON = 2**25
SUFFIXES = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
INDEXES = (
    ".safetensors.index.json",
    ".bin.index.json",
    ".safetensors.index.fp16.json",
    ".bin.index.fp16.json",
)
SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}

# theirs -> ours; a dot or the end of the name follows
_UNET_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    # the attention's own, in recent and in old files
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)")
_LEVEL = re.compile(r"(down|up)_blocks\.(\d+)")


def is_folder(path: Path) -> bool:
    """Whether a path is a folder in this layout."""
    return (path / "model_index.json").is_file()


def read_state_dict(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder under the names of the public checkpoints, mapped from their files.

    Raises:
        UserError: a part without a readable weight file.
    """
    unet = _read(weight_files(folder / "unet", "diffusion_pytorch_model"))
    vae = _read(weight_files(folder / "vae", "diffusion_pytorch_model"))
    text = read_text_tower(*weight_files(folder / "text_encoder", "model", "pytorch_model"))
    state = {UNET + ours: unet[theirs] for theirs, ours in unet_names(unet).items()}
    for theirs, ours in vae_names(vae).items():
        tensor = vae[theirs]
        # theirs are linear maps, ours 1x1 convolutions
        pointwise = ".attn_1." in ours and tensor.ndim == 2
        state[AUTOENCODER + ours] = tensor[:, :, None, None] if pointwise else tensor
    return state | {f"{TEXT}transformer.{name}": tensor for name, tensor in text.items()}


def weight_files(folder: Path, *stems: str) -> list[Path]:
    """A part's weights, ``.safetensors`` before ``.bin``: one file, or the pieces that an index names.

    Raises:
        UserError: there are none, or not all pieces.
    """
    for suffix in (*SUFFIXES, *INDEXES):
        for stem in stems:
            path = folder / (stem + suffix)
            if path.is_file():
                return _pieces(path) if suffix in INDEXES else [path]
    raise UserError(f"{folder} holds no {stems[0]}.safetensors or .bin: fetch the whole folder")


def _pieces(index: Path) -> list[Path]:
    """The files of ``{"weight_map": {name of a weight: name of a file}}``, all beside the index."""
    weight_map = _json(index).get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{index} is no index of weight files: fetch the folder again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {missing[0]}, a piece of its weights: fetch the whole folder")
    return [index.parent / name for name in names]


def _read(paths: Iterable[Path]) -> dict[str, Tensor]:
    return {name: tensor for path in paths for name, tensor in checkpoints.read_state_dict(path).items()}


def read_text_tower(*paths: Path) -> dict[str, Tensor]:
    """The text tower of Hugging Face weight files, under names that begin with ``text_model.``.

    Recent files leave that beginning out; whole CLIP models hold a vision tower besides.
    """
    bare = ("embeddings.", "encoder.", "final_layer_norm.")
    state = {
        f"text_model.{name}" if name.startswith(bare) else name: tensor
        for name, tensor in _read(paths).items()
    }
    return {name: tensor for name, tensor in state.items() if name.startswith("text_model.")}


# ------------------------------------------------------------------------------ names
def unet_names(names: Iterable[str]) -> dict[str, str]:
    """Their names of the UNet's weights -> ours. Ours count blocks through all levels."""
    names = list(names)
    found = [match.groups() for name in names if (match := _BLOCK.match(name))]
    numbers = [int(j) for way, _, kind, j, _ in found if (way, kind) == ("down", "resnets")]
    per_level = 1 + max(numbers, default=0)
    attended = {level for way, level, kind, *_ in found if (way, kind) == ("up", "attentions")}

    def ours(name: str) -> str:
        match = _BLOCK.match(name)
        if not match:
            name = _renamed(name, _UNET_TOP)
            return _renamed(name, _UNET_RESNET) if re.match(r"middle_block\.[02]\.", name) else name
        way, level, kind, j, rest = match.groups()
        if kind == "resnets":
            rest = _renamed(rest, _UNET_RESNET)
        if kind == "downsamplers":
            rest = _renamed(rest, {"conv": "op"})
        # down: n blocks and a downsampling a level; up: n + 1 blocks, the last of which upsamples at its end
        inside = int(j) if kind in ("resnets", "attentions") else per_level
        block = int(level) * (per_level + 1) + inside
        upsampler = 2 if level in attended else 1
        slot = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": upsampler}[kind]
        place = f"input_blocks.{block + 1}" if way == "down" else f"output_blocks.{block}"
        return f"{place}.{slot}.{rest}"

    return {name: ours(name) for name in names}


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Their names of the autoencoder's weights -> ours. Ours count the decoder's levels from the picture."""
    names = list(names)
    last = max((int(m[2]) for name in names if (m := _LEVEL.search(name))), default=0)

    def level(match: re.Match[str]) -> str:
        return f"{match[1]}.{match[2] if match[1] == 'down' else last - int(match[2])}"

    return {name: _renamed(_LEVEL.sub(level, name), _VAE) for name in names}


def _renamed(name: str, table: dict[str, str]) -> str:
    """``name`` with each whole run of its parts that the table has replaced."""
    for theirs, ours in table.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.|$)", rf"\g<1>{ours}", name)
    return name


# ------------------------------------------------------------------------------ configs
def configured(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The ``model:`` section of a folder: what its shapes said, completed by its JSON files.

    Raises:
        UserError: a file that is missing, or says something that this project does not know.
    """
    try:
        return _configured(model, folder)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{folder}: its JSON files do not fit its weights ({error}); fetch the folder again"
        ) from error


def _configured(model: dict[str, Any], folder: Path) -> dict[str, Any]:
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    betas = [float(beta) for beta in scheduler.get("trained_betas") or ()]
    kind = "linear" if betas else scheduler.get("beta_schedule", "linear")
    prediction = scheduler.get("prediction_type", "epsilon")
    if kind not in SCHEDULES or prediction not in PREDICTIONS:
        raise UserError(
            f"{folder} has the schedule {kind!r} and predicts {prediction!r}, one of which is not known "
            "here; give a config"
        )
    params = {k: v for k, v in model["unet"]["params"].items() if not k.startswith("num_head")}
    text = {"version": f"{folder.name}/text_encoder"}
    if (folder / "tokenizer").is_dir():
        text["tokenizer"] = f"{folder.name}/tokenizer"
    factor = 2 ** (len(model["autoencoder"]["params"]["ch_mult"]) - 1)
    return {
        **model,
        "image_size": factor * int(unet.get("sample_size") or model["image_size"] // factor),
        "scale_factor": float(vae.get("scaling_factor", 0.18215)),
        "parameterization": PREDICTIONS[prediction],
        "schedule": {
            "timesteps": len(betas) or int(scheduler.get("num_train_timesteps", 1000)),
            "linear_start": float(scheduler.get("beta_start", 0.0001)),
            "linear_end": float(scheduler.get("beta_end", 0.02)),
            "kind": SCHEDULES[kind],
            "betas": betas,
            "zero_snr": bool(scheduler.get("rescale_betas_zero_snr", False)),
        },
        "unet": {**model["unet"], "params": {**params, **_heads(unet, folder)}},
        "text": {**model["text"], "params": text},
    }


def _heads(unet: dict[str, Any], folder: Path) -> dict[str, int]:
    """Heads of the UNet. Their ``attention_head_dim`` is, for historical reasons, a number of heads."""
    heads = unet.get("num_attention_heads") or unet.get("attention_head_dim", 8)
    if isinstance(heads, int):
        return {"num_heads": heads}
    widths = {width // n for width, n in zip(unet["block_out_channels"], heads, strict=True)}
    if len(widths) > 1:
        raise UserError(f"{folder}: a UNet with heads of widths {sorted(widths)} is not known here")
    return {"num_head_channels": widths.pop()}


def _json(path: Path) -> dict[str, Any]:
    try:
        with opened(path, "JSON file", MAX_JSON) as handle:
            return dict(json.loads(handle.read().decode()))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({type(error).__name__}); fetch the folder again") from error
