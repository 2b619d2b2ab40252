"""Stable Diffusion's text encoders: CLIP's text towers, built by ``open_clip_torch``.

Version 1 conditions on the last hidden state of OpenAI's ViT-L/14 after the final layer norm, version
2 on the next to last block's output of OpenCLIP's ViT-H/14 after the same norm. Both are causal
transformers without a padding mask: pads are attended to. Weights have the names of the public
checkpoints, which for version 1 are Hugging Face's: :class:`ClipConditioner` translates them where
they come in and go out, and nothing else in the project knows.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.diffusers_layout import MAX_JSON, read_text_tower
from ldm.io.files import opened
from ldm.ranges import MAX_LAYERS
from ldm.text.bpe import ClipTokenizer, holds_vocabulary
from ldm.text.conditioner import TextConditioner

VIT_L_14 = "openai/clip-vit-large-patch14"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = ("gelu", "quick_gelu")


def build_tower(
    width: int,
    layers: int,
    heads: int,
    max_length: int,
    vocab_size: int,
    mlp_ratio: float,
    act: str,
    projection: int | None,
) -> Any:
    """``open_clip``'s text transformer, without its mask: ``encode`` makes its own.

    Args:
        act: "gelu" or "quick_gelu".
        projection: width of the output projection, which conditioning never uses; ``None``: none.

    Raises:
        UserError: heads that do not divide the width, or another activation.
    """
    from open_clip.transformer import QuickGELU, TextTransformer

    if heads < 1 or width % heads:
        raise UserError(f"a text tower of width {width} does not split into {heads} heads; give a divisor")
    if act not in ACTIVATIONS:
        raise UserError(f"unknown activation {act!r} of a text tower; use one of {', '.join(ACTIVATIONS)}")
    return TextTransformer(
        context_length=max_length,
        vocab_size=vocab_size,
        width=width,
        heads=heads,
        layers=layers,
        mlp_ratio=mlp_ratio,
        output_dim=projection,
        no_causal_mask=True,
        act_layer=QuickGELU if act == "quick_gelu" else nn.GELU,
    )


def hidden_states(tower: Any, embeds: Tensor, clip_skip: int) -> Tensor:
    """Hidden states (B, L, D) of token embeddings, after the blocks up to the ``clip_skip``-th last."""
    length = embeds.shape[1]
    mask = torch.full((length, length), -math.inf, device=embeds.device, dtype=embeds.dtype).triu(1)
    x = embeds + tower.positional_embedding[:length]
    blocks = tower.transformer.resblocks
    for block in blocks[: len(blocks) + 1 - clip_skip]:
        x = block(x, attn_mask=mask)
    return x


class OpenClipConditioner(TextConditioner):
    """Stable Diffusion 2: OpenCLIP's tower, whose last block is held and not used; pads with 0.

    Args:
        width: D; the default sizes are ViT-H/14's.
        layers, heads: transformer blocks and their attention heads.
        max_length: L, positions.
        vocab_size: rows of the token table.
        mlp_ratio: width of the feed-forward, in D.
        clip_skip: the block whose output is used, counted from the last one, which is 1.
    """

    def __init__(
        self,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        max_length: int = 77,
        vocab_size: int = 49408,
        mlp_ratio: float = 4.0,
        clip_skip: int = 2,
    ) -> None:
        super().__init__()
        self.width, self.max_length = width, max_length
        self.own_clip_skip, self.blocks = clip_skip, layers
        self.use_clip_skip(clip_skip)
        self.tokenizer = ClipTokenizer(max_length, pad="!", mend=True, rows=vocab_size)  # "!" has id 0
        self.model: Any = build_tower(
            width, layers, heads, max_length, vocab_size, mlp_ratio, "gelu", projection=width
        )
        self.model.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # public, unused

    @property
    def token_table(self) -> Tensor:
        return self.model.token_embedding.weight

    def hidden(self, embeds: Tensor, ids: Tensor) -> Tensor:
        assert self.clip_skip is not None
        return hidden_states(self.model, embeds, self.clip_skip)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.model.ln_final(hidden)


class ClipConditioner(TextConditioner):
    """Stable Diffusion 1: CLIP's tower under its Hugging Face names; pads with the end token.

    Args:
        width: D; the default sizes are ViT-L/14's.
        layers, heads: transformer blocks and their attention heads.
        max_length: L, positions.
        vocab_size: rows of the token table.
        mlp_ratio: width of the feed-forward, in D.
        act: "quick_gelu", or "gelu" for towers that were not OpenAI's.
        pad: the token that pads; the tokenizer's own when not given.
        version: a local folder in the Hugging Face layout, whose ``config.json`` replaces the sizes
            above, with its weights, if it has any; or ViT-L/14's public name, which changes nothing:
            no file is ever fetched.
        tokenizer: a local folder with a vocabulary of its own; ``version`` when that has one.
        clip_skip: the block whose output is used, counted from the last one, which is 1.

    Raises:
        UserError: ``version`` is neither, or its config describes another kind of model.
    """

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        max_length: int = 77,
        vocab_size: int = 49408,
        mlp_ratio: float = 4.0,
        act: str = "quick_gelu",
        pad: str | None = None,
        version: str | Path = VIT_L_14,
        tokenizer: str | Path | None = None,
        clip_skip: int = 1,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "width": width,
            "layers": layers,
            "heads": heads,
            "max_length": max_length,
            "vocab_size": vocab_size,
            "mlp_ratio": mlp_ratio,
            "act": act,
        }
        folder = Path(version)
        if folder.is_dir():
            sizes = read_sizes(folder)
            if tokenizer is None and holds_vocabulary(folder):
                tokenizer = folder
        elif str(version) != VIT_L_14:
            raise UserError(
                f"text encoder version {str(version)!r} is neither a local folder nor {VIT_L_14}; "
                "nothing is downloaded: give a folder with config.json"
            )
        self.width, self.max_length = sizes["width"], sizes["max_length"]
        self.own_clip_skip, self.blocks = clip_skip, sizes["layers"]
        self.use_clip_skip(clip_skip)
        self.tokenizer = ClipTokenizer(self.max_length, folder=tokenizer, pad=pad, rows=sizes["vocab_size"])
        self.tower: Any = build_tower(**sizes, projection=None)
        self.register_state_dict_post_hook(_to_public)
        self.register_load_state_dict_pre_hook(_from_public)
        weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
        if weights and not self.token_table.is_meta:  # on meta, a checkpoint will bring them
            self._load(weights)

    @property
    def token_table(self) -> Tensor:
        return self.tower.token_embedding.weight

    @property
    def init_position(self) -> Tensor:
        return self.tower.positional_embedding[0]

    def hidden(self, embeds: Tensor, ids: Tensor) -> Tensor:
        assert self.clip_skip is not None
        return hidden_states(self.tower, embeds, self.clip_skip)

    def finish(self, hidden: Tensor) -> Tensor:
        return self.tower.ln_final(hidden)

    def _load(self, path: Path) -> None:
        try:
            self.load_state_dict({f"transformer.{k}": v for k, v in read_text_tower(path).items()})
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()[:120]
            raise UserError(
                f"{path} does not fit the config.json beside it ({reason}); "
                "give weights and config of the same model"
            ) from error


# ------------------------------------------------------------------ the Hugging Face layout

PUBLIC = "transformer.text_model."
#: ours, public; a block's number is between the two halves of its name
_NAMES = (
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".ln_", ".layer_norm"),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_FUSED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)$")


def _to_public(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """After ``state_dict``: Hugging Face's names, and one projection each for q, k and v."""
    own = prefix + "tower."
    for name in [n for n in state if n.startswith(own)]:
        tensor, short = state.pop(name), name.removeprefix(own)
        if fused := _FUSED.match(short):
            layer, kind = public_name(fused[1] + "."), fused[2]
            for part, value in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{prefix}{PUBLIC}{layer}self_attn.{part}_proj.{kind}"] = value
        else:
            state[prefix + PUBLIC + public_name(short)] = tensor


def _from_public(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before ``load_state_dict``: the reverse. What is not complete keeps its name and is reported."""
    wanted = [n for n, _ in module.named_parameters() if n.startswith("tower.")]
    for name in wanted:
        short = name.removeprefix("tower.")
        if fused := _FUSED.match(short):
            layer = prefix + PUBLIC + public_name(fused[1] + ".")
            parts = [f"{layer}self_attn.{part}_proj.{fused[2]}" for part in "qkv"]
            if all(part in state for part in parts):
                state[prefix + name] = torch.cat([state.pop(part) for part in parts])
        elif (public := prefix + PUBLIC + public_name(short)) in state:
            state[prefix + name] = state.pop(public)
    state.pop(f"{prefix}{PUBLIC}embeddings.position_ids", None)  # 0, 1, 2, ...: no weight


def public_name(name: str) -> str:
    """Hugging Face's name of a weight of the tower."""
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name


def read_sizes(folder: Path) -> dict[str, Any]:
    """Arguments of :func:`build_tower` from a folder's ``config.json`` (of a tower or a whole CLIP)."""
    path = folder / "config.json"
    try:
        with opened(path, "JSON file", MAX_JSON) as handle:
            found = json.loads(handle.read().decode())
        found = found.get("text_config") or found
        width = int(found["hidden_size"])
        if int(found["num_hidden_layers"]) > MAX_LAYERS:
            layers = found["num_hidden_layers"]
            raise UserError(f"{path} asks for {layers} layers; at most {MAX_LAYERS} are built")
        return {
            "width": width,
            "layers": int(found["num_hidden_layers"]),
            "heads": int(found["num_attention_heads"]),
            "max_length": int(found.get("max_position_embeddings", 77)),
            "vocab_size": int(found.get("vocab_size", 49408)),
            "mlp_ratio": int(found.get("intermediate_size", 4 * width)) / width,
            "act": str(found.get("hidden_act", "quick_gelu")),
        }
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with values that anyone may have written
        raise UserError(
            f"{path} is not the config of a CLIP text encoder ({type(error).__name__}); check the folder"
        ) from error
