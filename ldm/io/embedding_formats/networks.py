"""Files that are no embeddings although they hold small tensors: told by the names of their tensors.

A LoRA or a text encoder is a table of names and tensors as a file of learned words is, and some fit an
embedding's shapes: they must not be taken for a file of many words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ldm.errors import UserError

#: what a file is -> a part of a name that only such files have; the first kind that fits is meant
_KINDS = (
    ("a LoRA", r"(^|[._])lora([._A-Z]|$)|\.(hada|lokr)_w[12]|\.(oft_(blocks|diag)|dora_scale)\b"),
    ("a ControlNet", r"(^|\.)(controlnet_|control_model\.|zero_convs\.|input_hint_block\.)"),
    (
        "a text encoder",
        r"(^|\.)(text_model|cond_stage_model|embedders)\."
        r"|(^|\.)((token|position|word)_embeddings?|token_emb|positional_embedding|text_projection)(\.weight)?$"
        r"|^((text_model|model|transformer)\.)*resblocks\.|^encoder\.block\.\d|^shared\.weight$",
    ),
    ("an autoencoder", r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up|mid)"),
    ("a UNet or another denoiser", r"(^|\.)(diffusion_model|input_blocks|(down|double|joint)_blocks)\."),
    ("a part of a network", r"\.(weight|bias|alpha|running_mean|running_var)$"),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _KINDS)


def kind_of_network(names: Iterable[str]) -> str | None:
    """What a file with tensors of these names is, such as "a LoRA"; None if it can be an embedding."""
    names = list(names)
    return next((kind for kind, pattern in _PATTERNS if any(map(pattern.search, names))), None)


def refuse_network(names: Iterable[str]) -> None:
    """:class:`UserError` if tensors of these names are weights of a network, which it names."""
    kind = kind_of_network(names)
    if kind is not None:
        raise UserError(
            f"it is {kind}, not a learned word: give a file with an embedding (textual inversion)"
        )
