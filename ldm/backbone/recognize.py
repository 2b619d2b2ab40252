"""What a checkpoint file is, told from the names and shapes of its weights.

Latent diffusion's text-to-image model and Stable Diffusion 1 and 2 are recognised at any size, and come
out in our own ``model:`` form (see ``configs/``). Three things are not in the shapes and follow the
family: the number of attention heads (8 in the UNets of LDM and version 1, heads of width 64 in
version 2's and in text encoders), the noise schedule, and the picture size.

Both models of version 2 have the same shapes. A file is taken for the 768 pixel one, which predicts v;
for "base" (512 pixels, eps) say so: ``configs/stable-diffusion/v2-base.yaml`` with the file as its
checkpoint, or ``ldm.load(file, parameterization="eps", image_size=512)``. An inversion refuses to start
on a wrong choice: its loss looks like an untrained model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ldm.config import ASSETS
from ldm.errors import UserError
from ldm.io.checkpoints import AUTOENCODER, TEXT, UNET

Shapes = Mapping[str, tuple[int, ...]]

HUGGING_FACE, OPEN_CLIP, BERT = "transformer.text_model.", "model.", "transformer.attn_layers."
#: settings that suit a family, as in ``configs/``
_TRAINER = {"max_steps": 5000, "precision": "auto", "checkpoint_every": 500, "image_every": 500}
_INVERSION = {
    "scale_lr": True,
    "optim": {"lr": 5.0e-3, "schedule": "constant"},
    "trainer": _TRAINER,
}
#: UNets of other kinds by their number of input channels
_INPUTS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
#: what files hold that are no such model, by a pattern of their names; the first one counts
_OTHERS = (
    (r"lora[_.]|\.lora|^lora", "a LoRA, which changes a model and is none"),
    (r"^conditioner\.embedders\.|^model\.diffusion_model\.label_emb\.|add_embedding", "Stable Diffusion XL"),
    (r"joint_blocks|double_blocks", "a diffusion transformer (Stable Diffusion 3, Flux)"),
    (r"^control_model\.|input_hint_block|controlnet_", "a ControlNet"),
    (r"^first_stage_model\.quantize\.", "a latent diffusion model with a vector-quantised autoencoder"),
    (
        r"^(encoder\.|decoder\.)?(down|up|mid)_blocks?\.",
        "one part of a diffusers folder, which is given whole, with its model_index.json",
    ),
    (r"^(emb_params|emp_params|clip_[lg]|text_encoders_\d)$", "a learned embedding, not a model"),
)


def recognize(shapes: Shapes, source: str = "the checkpoint") -> dict[str, Any]:
    """The ``model:`` and ``inversion:`` sections of a checkpoint with these names and shapes.

    Raises:
        UserError: the checkpoint is of another kind; says what was found.
    """
    unet, autoencoder, text = (_below(shapes, prefix) for prefix in (UNET, AUTOENCODER, TEXT))
    found = _other_kind(shapes, unet, autoencoder, text)
    if found is None:
        try:
            return _sections(unet, autoencoder, text)
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            found = f"cut short or of an unknown layout ({error})"
    raise UserError(
        f"{source} is {found}; give a checkpoint of LDM text-to-image, Stable Diffusion 1 or 2, "
        "or a config that describes it"
    )


def _sections(unet: Shapes, autoencoder: Shapes, text: Shapes) -> dict[str, Any]:
    params = unet_params(unet)
    linear, bert = params["use_linear_in_transformer"], f"{BERT}layers.0.1.to_q.weight" in text
    return {
        "model": {
            "image_size": 256 if bert else 768 if linear else 512,
            "scale_factor": 0.18215,
            "parameterization": "v" if linear else "eps",
            "schedule": {"timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012, "kind": "linear"},
            "autoencoder": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": autoencoder_params(autoencoder),
            },
            "unet": {"target": "ldm.models.unet.UNetModel", "params": params},
            "text": text_node(text, linear),
        },
        "inversion": {**_INVERSION, "batch_size": 4 if bert else 2, "show": {"scale": 5.0 if bert else 7.5}},
    }


# ------------------------------------------------------------------------------ the three parts
def unet_params(unet: Shapes) -> dict[str, Any]:
    """Arguments of ``UNetModel``; names without their prefix."""
    channels, in_channels = unet["input_blocks.0.0.weight"][:2]
    levels: list[list[int]] = [[]]  # multipliers of each level's residual blocks
    attention = set()
    for i in range(1, _count(unet, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{i}.0.op.weight" in unet:
            levels.append([])
            continue
        levels[-1].append(unet[f"input_blocks.{i}.0.in_layers.2.weight"][0] // channels)
        if f"input_blocks.{i}.1.proj_in.weight" in unet:
            attention.add(2 ** (len(levels) - 1))
    linear = len(unet["middle_block.1.proj_in.weight"]) == 2
    heads = {"num_head_channels": math.gcd(64, channels)} if linear else {"num_heads": 8}
    return {
        "in_channels": in_channels,
        "out_channels": unet["out.2.weight"][0],
        "model_channels": channels,
        "num_res_blocks": len(levels[0]),
        "attention_resolutions": sorted(attention),
        "channel_mult": [level[0] for level in levels],
        **heads,
        "transformer_depth": _count(unet, r"middle_block\.1\.transformer_blocks\.(\d+)\."),
        "context_dim": unet["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_in_transformer": linear,
    }


def autoencoder_params(autoencoder: Shapes) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``; names without their prefix."""
    ch, in_channels = autoencoder["encoder.conv_in.weight"][:2]
    levels = _count(autoencoder, r"encoder\.down\.(\d+)\.")
    widths = [autoencoder[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels)]
    return {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "num_res_blocks": _count(autoencoder, r"encoder\.down\.0\.block\.(\d+)\."),
        "z_channels": autoencoder["decoder.conv_in.weight"][1],
        "embed_dim": autoencoder["post_quant_conv.weight"][1],
        "in_channels": in_channels,
        "out_ch": autoencoder["decoder.conv_out.weight"][0],
    }


def text_node(text: Shapes, version_2: bool) -> dict[str, Any]:
    """The conditioner's ``target`` and ``params``; names without their prefix."""
    if f"{BERT}layers.0.1.to_q.weight" in text:
        rows, width = text["transformer.token_emb.weight"]
        params = {
            "vocab_file": str(ASSETS / "bert" / "vocab.txt"),
            "n_embed": width,
            "n_layer": _count(text, r"transformer\.attn_layers\.layers\.(\d+)\.") // 2,
            "vocab_size": rows,
            "max_seq_len": text["transformer.pos_emb.emb.weight"][0],
            "heads": 8,
            "dim_head": text[f"{BERT}layers.0.1.to_q.weight"][0] // 8,
            "logits_head": "transformer.to_logits.weight" in text,
        }
        return {"target": "ldm.text.bert.BertConditioner", "params": params}
    hugging_face = HUGGING_FACE + "embeddings.token_embedding.weight" in text
    if hugging_face:
        table, positions = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
        prefix, layers, inner = HUGGING_FACE, "encoder.layers", "mlp.fc1"
    else:
        table, positions = "token_embedding.weight", "positional_embedding"
        prefix, layers, inner = OPEN_CLIP, "transformer.resblocks", "mlp.c_fc"
    rows, width = text[prefix + table]
    params = {
        "width": width,
        "layers": _count(text, re.escape(f"{prefix}{layers}.") + r"(\d+)\."),
        "heads": max(1, width // 64),
        "max_length": text[prefix + positions][0],
        "vocab_size": rows,
        "mlp_ratio": text[f"{prefix}{layers}.0.{inner}.weight"][0] / width,
    }
    if not hugging_face:
        return {"target": "ldm.text.clip.OpenClipConditioner", "params": params}
    # version 2 in Hugging Face's names comes without its unused last block
    own = {"act": "gelu", "pad": "!"} if version_2 else {"act": "quick_gelu"}
    return {"target": "ldm.text.clip.ClipConditioner", "params": {**params, **own}}


# ------------------------------------------------------------------------------ anything else
def _other_kind(shapes: Shapes, unet: Shapes, autoencoder: Shapes, text: Shapes) -> str | None:
    """What a checkpoint is that is none of ours, in words; ``None`` for one of ours."""
    for pattern, what in _OTHERS:
        if any(re.search(pattern, name) for name in shapes):
            return what
    if not unet:
        if autoencoder or "decoder.conv_in.weight" in shapes:
            return "an autoencoder alone"
        if len(shapes) <= 4 and all(len(shape) <= 2 for shape in shapes.values()):
            return "a learned embedding, not a model"
        return f"not a latent diffusion model (it holds {_some(shapes)})"
    channels = (*unet.get("input_blocks.0.0.weight", ()), 0, 0)[1]
    if channels in _INPUTS:
        return f"{_INPUTS[channels]}: its UNet takes {channels} channels"
    if not autoencoder or not text:
        return f"a UNet without its {'text encoder' if autoencoder else 'autoencoder'}"
    if not any(name.startswith((HUGGING_FACE, OPEN_CLIP, BERT)) for name in text):
        return f"a latent diffusion model with another conditioner ({_some(text)})"
    return None


def _some(names: Shapes) -> str:
    return ", ".join(sorted(names)[:2]) + (", ..." if len(names) > 2 else "")


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {k.removeprefix(prefix): tuple(v) for k, v in shapes.items() if k.startswith(prefix)}


def _count(names: Shapes, pattern: str) -> int:
    """One more than the highest number that a pattern finds at the beginning of a name."""
    return 1 + max(int(match[1]) for name in names if (match := re.match(pattern, name)))
